import io

import pytest
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.db.models.functions import Upper
from django.utils import timezone

from django_batches import Batch, database
from django_batches.exceptions import BatchError
from django_batches.models import BatchJob, FailureGroup, TimeBucket
from django_batches.transitions import applying, deleting, results
from django_batches.transport.client import Keys
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..road import claim, outcome_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def batch():
    with Batch.open("one") as batch:
        batch.map(tasks.ok, range(3))
    return batch


def finish(batch, kinds):
    claimed = claim(batch)
    applying.record([outcome_of(job, kind) for job, kind in zip(claimed, kinds, strict=True)])
    batch.refresh_from_db()


def test_a_stale_save_writes_description_and_metadata_only(batch):
    stale = Batch.objects.get()
    finish(batch, [Kind.SUCCEEDED] * 3)
    stale.metadata["x"] = 1
    stale.description = "two"
    stale.status = "cancelled"
    stale.total = 9
    stale.save()
    stale.save(update_fields=["total", "metadata"])
    batch.refresh_from_db()
    assert (batch.status, batch.total, batch.succeeded, batch.pending) == ("succeeded", 3, 3, 0)
    assert (batch.description, batch.metadata) == ("two", {"x": 1})


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("metadata", {"x": float("nan")}, "metadata"),
        ("metadata", {"x": "\0"}, "contains a NUL"),
        ("metadata", {"x": "x" * 2_000_000}, "more than MAX_PAYLOAD"),
        ("metadata", None, "is not a dict"),
        ("description", "a\0b", "contains a NUL"),
        ("description", None, "pass str"),
    ],
)
def test_save_refuses_what_open_refuses(batch, field, value, fix):
    setattr(batch, field, value)
    with pytest.raises((TypeError, ValueError), match=fix):
        batch.save()
    other = {"metadata", "description"} - {field}
    batch.save(update_fields=other)
    assert Batch.objects.get().metadata == {} and Batch.objects.get().description == "one"


def test_a_description_may_be_computed_by_the_database(batch):
    batch.description = Upper("description")
    batch.save()
    assert Batch.objects.get().description == "ONE"


def test_the_verbs_of_a_deleted_batch_raise_an_error(batch):
    finish(batch, [Kind.SUCCEEDED] * 3)
    Batch.objects.get().delete()
    for act in (batch.reload, batch.cancel):
        with pytest.raises(BatchError, match=f"Batch {batch.pk} has been deleted"):
            act()


def test_a_job_that_is_not_written_yet_cannot_be_retried_or_cancelled():
    with Batch.open() as batch:
        job = batch.enqueue(tasks.ok)
        for act in (job.cancel, job.retry):
            with pytest.raises(BatchError, match="not written before the block ends"):
                act()
    assert job.cancel() and batch.jobs.get().status == "cancelled"


def test_a_job_has_an_id_in_rq_while_it_is_there(batch):
    first, *others = claim(batch)
    job = batch.jobs.get(pk=first.id)
    assert job.rq_id == Keys().rq_id(first.id, first.dispatch)
    applying.record([outcome_of(each) for each in (first, *others)])
    assert [job.rq_id for job in batch.jobs.all()] == ["", "", ""]


def test_batches_and_jobs_cannot_be_created_or_saved_directly(batch):
    with pytest.raises(TypeError, match=r"Batch\.open"):
        Batch(queue="x", timeout=1).save()
    with pytest.raises(TypeError, match=r"Batch\.open"):
        Batch.objects.create(queue="x", timeout=1)
    with pytest.raises(TypeError, match="cannot be saved"):
        batch.jobs.first().save()
    with pytest.raises(TypeError, match="delete the batch"):
        batch.jobs.all().delete()
    with pytest.raises(TypeError, match="delete the batch"):
        batch.jobs.first().delete()


@pytest.mark.parametrize(
    "change", [{"pending": 4}, {"succeeded": -1}, {"total": 5}, {"in_flight": 4}, {"open_callbacks": -1}]
)
def test_the_database_refuses_counters_that_do_not_add_up(batch, change):
    with pytest.raises(IntegrityError), transaction.atomic():
        Batch.objects.filter(pk=batch.pk).update(**change)


def test_a_row_belongs_to_a_batch_or_is_a_callback_of_one(batch):
    with pytest.raises(IntegrityError), transaction.atomic():
        batch.jobs.filter(position=0).update(callback_of=batch)
    with pytest.raises(IntegrityError), transaction.atomic():
        batch.jobs.filter(position=0).update(batch=None)


def test_a_batch_that_has_not_ended_cannot_be_deleted(batch):
    with pytest.raises(BatchError, match="has not ended: cancel it and wait"):
        batch.delete()
    with pytest.raises(BatchError):
        Batch.objects.all().delete()
    assert BatchJob.objects.count() == 3


def test_an_ended_batch_is_deleted_with_all_its_rows(batch):
    finish(batch, [Kind.SUCCEEDED, Kind.FAILED, Kind.SUCCEEDED])
    assert FailureGroup.objects.count() == TimeBucket.objects.count() == 1
    batch.delete()
    for model in (Batch, BatchJob, FailureGroup, TimeBucket):
        assert not model.objects.exists()


def test_a_batch_whose_callbacks_have_not_ended_cannot_be_deleted():
    with Batch.open() as batch:
        batch.on_finish(tasks.told, "path")
    with pytest.raises(BatchError, match="callbacks that have not ended"):
        batch.delete()


def test_progress_results_and_throughput_come_from_the_rows(batch):
    assert batch.progress == 0.0 and batch.result is None
    claimed = claim(batch)
    applying.record([outcome_of(claimed[1], result='"b"', started_at=timezone.now())])
    batch.refresh_from_db()
    assert batch.progress == pytest.approx(1 / 3)
    assert list(batch.results()) == [None, "b", None]
    assert batch.throughput > 0 and batch.eta is None  # one job in no time is not significant
    applying.record([outcome_of(claimed[0], result=None), outcome_of(claimed[2], result='{"a": 1}')])
    batch.refresh_from_db()
    assert list(batch.results()) == batch.result == [None, "b", {"a": 1}]
    assert batch.throughput == 0.0 and batch.eta is None


def test_results_are_read_page_by_page(batch, monkeypatch, django_assert_num_queries):
    claimed = claim(batch)
    applying.record([outcome_of(job, result=str(index)) for index, job in enumerate(claimed)])
    monkeypatch.setattr(results, "PAGE", 2)
    found = batch.results()
    with django_assert_num_queries(1):
        assert [next(found), next(found)] == [0, 1]
    with django_assert_num_queries(1):
        assert list(found) == [2]


def test_the_first_failure_names_the_job(batch):
    claimed = claim(batch)
    applying.record([outcome_of(claimed[1], Kind.FAILED)])
    applying.record([outcome_of(claimed[0], Kind.FAILED)])
    batch.refresh_from_db()
    assert batch.first_failure.pk == claimed[1].id


def test_an_interrupted_deletion_continues_in_chunks(batch, monkeypatch):
    finish(batch, [Kind.SUCCEEDED] * 3)
    monkeypatch.setattr(database, "CHUNK", 2)
    assert deleting.begin_deletion(batch.pk)
    deleting.continue_deletions()
    assert BatchJob.objects.count() == 1
    deleting.continue_deletions()
    assert not Batch.objects.exists() and not BatchJob.objects.exists()
    assert batch.wait(timeout=5) is True


def test_there_is_no_migration_missing():
    out = io.StringIO()
    call_command("makemigrations", "django_batches", check=True, dry_run=True, stdout=out)
