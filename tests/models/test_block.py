import pytest
from django.db import DatabaseError, Error, connection, transaction
from django.template import Context, Template
from django.test import override_settings

from django_batches import Batch, database
from django_batches.database import inserting
from django_batches.exceptions import BatchCancelled, BatchError, BatchFinished, FunctionNotAllowed
from django_batches.models import BatchJob, block
from django_batches.transitions import applying, creating, repairing
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..road import claim, outcome_of, statements

pytestmark = pytest.mark.django_db(transaction=True)


def counts(batch):
    batch.refresh_from_db()
    return (batch.total, batch.pending, batch.succeeded, batch.failed, batch.cancelled)


def test_leaving_the_block_writes_the_jobs_and_seals_the_batch():
    with Batch.open("Images", queue="images", timeout=60, max_attempts=3, backoff=[1, 2], metadata={"a": 1}) as batch:
        assert Batch.objects.get() == batch  # so that a foreign key to it may be set
        job = batch.enqueue(tasks.ok, 7)
        assert batch.map(tasks.ok, [1, 2, 3]) == 3
        assert batch.starmap(tasks.append, [("path", "text")]) == 1
        assert batch.status == "open"
    assert batch.status == "running" and batch.sealed_at
    assert counts(batch) == (5, 5, 0, 0, 0)
    rows = list(batch.jobs.order_by("position"))
    assert [row.position for row in rows] == [0, 1, 2, 3, 4]
    assert [row.args for row in rows] == [[7], [1], [2], [3], ["path", "text"]]
    assert rows[0] == job and job.position == 0
    assert {(row.queue, row.timeout, row.max_attempts, row.backoff) for row in rows} == {
        ("images", 60, 3, "[1.0, 2.0]")
    }
    assert batch.metadata == {"a": 1} and batch.description == "Images"


def test_map_passes_each_item_first_then_the_shared_arguments():
    with Batch.open() as batch:
        batch.map(tasks.append, ["one", "two"], text="shared")
        batch.starmap(tasks.append, [["three"]], "shared")
    assert [(job.args, job.kwargs) for job in batch.jobs.all()] == [
        (["one"], {"text": "shared"}),
        (["two"], {"text": "shared"}),
        (["three", "shared"], {}),
    ]


def test_using_gives_other_options_to_jobs_and_callbacks():
    with Batch.open(queue="slow") as batch:
        batch.using(queue="fast", timeout=5, max_attempts=9, backoff=1).enqueue(tasks.ok)
        batch.using(queue="mail").on_success(tasks.told, "path")
    job = batch.jobs.get()
    assert (job.queue, job.timeout, job.max_attempts, job.backoff) == ("fast", 5, 9, "1.0")
    assert '"queue":"mail"' in Batch.objects.get().registered_callbacks


def test_a_generator_is_consumed_in_chunks(monkeypatch):
    monkeypatch.setattr(block, "FLUSH_AT", 10)
    written = []

    def items():
        for item in range(35):
            written.append(BatchJob.objects.count())
            yield item

    with Batch.open() as batch:
        assert batch.map(tasks.ok, items()) == 35
    assert (written[10], written[11], written[34]) == (0, 10, 30)
    assert [job.args for job in batch.jobs.all()] == [[item] for item in range(35)]


def test_an_error_before_anything_is_written_leaves_nothing():
    with pytest.raises(ZeroDivisionError), Batch.open() as batch:
        batch.enqueue(tasks.ok)
        1 / 0  # noqa: B018
    assert not Batch.objects.exists() and not BatchJob.objects.exists()


def test_a_generator_that_raises_half_way_cancels_the_written_jobs(monkeypatch):
    monkeypatch.setattr(block, "FLUSH_AT", 10)

    def items():
        yield from range(25)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Batch.open() as batch:
        batch.map(tasks.ok, items())
    assert counts(batch) == (20, 0, 0, 0, 20)
    assert batch.status == "cancelled"
    assert batch.reason == "ZeroDivisionError was raised in its block."


@pytest.fixture
def errors(way_to_write, monkeypatch):
    """What the next attempts to write jobs raise."""
    to_raise = []
    insert_jobs = inserting.jobs

    def insert_or_fail(new):
        if to_raise:
            raise to_raise.pop()
        insert_jobs(new)

    def execute_or_fail(execute, sql, *args):
        if to_raise and f"INSERT INTO {database.JOB}" in sql:
            raise to_raise.pop()
        return execute(sql, *args)

    monkeypatch.setattr(inserting, "jobs", insert_or_fail)
    with connection.execute_wrapper(execute_or_fail):
        yield to_raise


def test_a_flush_that_fails_at_the_end_leaves_nothing_and_raises(errors):
    with pytest.raises(DatabaseError, match="disk full"), Batch.open() as batch:
        batch.enqueue(tasks.ok)
        errors.append(DatabaseError("disk full"))
    assert errors == [] and not Batch.objects.filter(pk=batch.pk).exists()


@pytest.mark.postgresql
def test_a_batch_can_be_opened_after_the_connection_was_lost():
    """As Django's `atomic` does, and single statements in no transaction do not."""
    connection.ensure_connection()
    mine = connection.connection.info.backend_pid
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [mine])
    finally:
        other.close()
    with pytest.raises(Error), Batch.open():
        pass
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
    assert counts(batch) == (1, 1, 0, 0, 0)


def test_a_rollback_leaves_nothing():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        with Batch.open() as batch:
            batch.enqueue(tasks.ok)
        assert batch.status == "running"
        1 / 0  # noqa: B018
    assert not Batch.objects.exists() and not BatchJob.objects.exists()


@pytest.mark.postgresql  # on SQLite the end of an outermost `atomic` commits even then
def test_without_autocommit_a_batch_is_written_with_the_commit_or_not_at_all():
    transaction.set_autocommit(False)
    try:
        for end in (transaction.rollback, transaction.commit):
            with Batch.open() as batch:
                batch.enqueue(tasks.ok)
            end()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert list(Batch.objects.all()) == [batch]
    assert counts(batch) == (1, 1, 0, 0, 0)


def test_under_atomic_requests_a_batch_is_written_with_the_response_or_not_at_all(client, settings, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    settings.ROOT_URLCONF = "tests.views"
    client.raise_request_exception = False
    assert client.get("/fail/").status_code == 500
    assert not Batch.objects.exists() and not BatchJob.objects.exists()
    assert client.get("/succeed/").status_code == 200
    assert counts(Batch.objects.get()) == (3, 3, 0, 0, 0)


def test_the_rollback_of_a_savepoint_leaves_nothing():
    with transaction.atomic():
        with Batch.open("kept") as kept:
            kept.enqueue(tasks.ok)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            with Batch.open("lost") as lost:
                lost.enqueue(tasks.ok)
            1 / 0  # noqa: B018
    assert [batch.description for batch in Batch.objects.all()] == ["kept"]
    assert BatchJob.objects.count() == 1


def test_the_coordinator_is_woken_once_and_only_after_the_commit(monkeypatch):
    wake_ups = []
    monkeypatch.setattr(creating, "wake_coordinator", lambda *held, added: wake_ups.append(added))
    with transaction.atomic():
        with Batch.open() as batch:
            batch.enqueue(tasks.ok)
        assert wake_ups == []
    assert wake_ups[0] == (batch.pk, 0, ["default"])


def test_an_error_that_broke_the_transaction_is_the_one_that_is_raised():
    with pytest.raises(ZeroDivisionError), transaction.atomic(), Batch.open() as batch:
        batch.enqueue(tasks.ok)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT no_such_column")
        except DatabaseError:
            transaction.set_rollback(True)
        1 / 0  # noqa: B018
    assert not Batch.objects.exists()


def test_an_empty_batch_succeeds_at_once_and_its_callbacks_are_called():
    with Batch.open() as batch:
        batch.on_success(tasks.told, "path")
        batch.on_finish(tasks.told, "path")
        batch.on_failure(tasks.told, "path")
        batch.on_attempted(tasks.told, "path")
    assert batch.status == "succeeded" and batch.progress == 1.0
    assert sorted(batch.callbacks.values_list("event", flat=True)) == ["attempted", "finish", "success"]
    assert batch.open_callbacks == 3


@pytest.mark.parametrize("verb", ["enqueue", "on_success"])
@pytest.mark.parametrize("func", ["os.system", lambda *args: None])
def test_a_forbidden_function_is_refused_when_it_is_added(verb, func):
    with Batch.open() as batch, pytest.raises(FunctionNotAllowed):
        getattr(batch, verb)(func)
    assert counts(batch) == (0, 0, 0, 0, 0)


def test_an_invalid_call_is_refused_when_it_is_added():
    with Batch.open() as batch:
        for args in [(1, 2), (object(),), (float("nan"),), ({1: 2},)]:
            with pytest.raises(TypeError):
                batch.enqueue(tasks.ok, *args)
        with pytest.raises(TypeError):
            batch.map(tasks.ok, [1, object()])
        with pytest.raises(TypeError):
            batch.on_success(tasks.told)
        with pytest.raises(TypeError, match="metadata"):
            Batch.open(metadata=[1])
    assert [job.args for job in batch.jobs.all()] == [[1]]


def test_an_argument_may_be_called_func_or_batch():
    with Batch.open() as batch:
        batch.enqueue(tasks.keywords, func=1, batch=2, self=3)
    assert batch.jobs.get().kwargs == {"func": 1, "batch": 2, "self": 3}


def test_callbacks_are_registered_before_the_seal():
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
        assert batch.seal() is True
        with pytest.raises(BatchError, match="before the batch is sealed"):
            batch.on_finish(tasks.told, "path")
    with pytest.raises(BatchError, match="before the batch is sealed"):
        Batch.objects.get().on_finish(tasks.told, "path")
    assert batch.seal() is False


def test_a_batch_that_has_not_ended_may_grow():
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
    fetched = Batch.objects.get()
    assert fetched.enqueue(tasks.ok, 2).position == 1
    assert fetched.map(tasks.ok, [3, 4]) == 2
    assert counts(batch) == (4, 4, 0, 0, 0)


def test_nothing_can_be_added_to_an_ended_batch():
    with Batch.open() as ended:
        pass
    with pytest.raises(BatchFinished, match="has ended"):
        ended.enqueue(tasks.ok)
    with Batch.open() as cancelled:
        cancelled.enqueue(tasks.ok)
    cancelled.cancel("enough")
    with pytest.raises(BatchCancelled, match="enough"):
        cancelled.map(tasks.ok, [1])
    assert BatchJob.objects.count() == 1


def test_a_batch_cancelled_while_it_is_filled_stops_its_creator():
    with pytest.raises(BatchCancelled), Batch.open() as batch:
        batch.enqueue(tasks.ok)
        Batch.objects.get().cancel()
    assert counts(batch) == (0, 0, 0, 0, 0)
    assert batch.status == "cancelled"


@pytest.mark.parametrize(
    ("verb", "error", "words"), [("cancel", BatchCancelled, "was cancelled"), ("seal", BatchFinished, "was sealed")]
)
def test_callbacks_that_can_no_longer_be_registered_raise_an_error(verb, error, words):
    with pytest.raises(error, match=f"{words}.*its callbacks are not registered"), Batch.open() as batch:
        batch.on_finish(tasks.ok_callback)
        getattr(Batch.objects.get(), verb)()
    assert batch.has_ended and not batch.callbacks.exists()


def test_a_block_that_has_nothing_left_to_write_may_end_after_a_cancel():
    with Batch.open() as batch:
        batch.on_finish(tasks.ok_callback)
        batch.enqueue(tasks.ok)
        batch.block.flush()
        batch.cancel()
    assert (batch.status, batch.callbacks.get().event) == ("cancelled", "finish")


def test_the_setting_gives_every_batch_a_failure_callback():
    given = {"CACHE": "batches", "ON_FAILURE": "tests.tasks.write_metadata"}
    with override_settings(DJANGO_BATCHES=given), Batch.open() as batch:
        batch.enqueue(tasks.ok)
    assert '"event":"failure","func":"tests.tasks.write_metadata"' in batch.registered_callbacks


@pytest.mark.parametrize("path", ["tests.tasks.no_such", "os.system", "tests.tasks.pid"])
def test_a_failure_callback_of_the_setting_that_cannot_be_called_leaves_nothing_behind(path):
    given = {"CACHE": "batches", "ON_FAILURE": path}
    with override_settings(DJANGO_BATCHES=given), pytest.raises((FunctionNotAllowed, ImportError, TypeError)):
        Batch.open(key="import").__enter__()
    assert not Batch.objects.exists()


def test_a_template_cannot_call_a_verb():
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
    text = "".join(
        "{{ batch.%s }}" % verb  # noqa: UP031
        for verb in ("cancel", "pause", "open", "delete", "retry_failed", "enqueue", "wait", "seal", "resume")
    )
    assert Template(text + "{{ job.retry }}{{ job.cancel }}{{ jobs.retry }}{{ jobs.delete }}").render(
        Context({"batch": batch, "job": batch.jobs.get(), "jobs": batch.jobs.all()})
    ) in ("", None)
    assert counts(batch) == (1, 1, 0, 0, 0)


@pytest.mark.parametrize("count", [1, 100, 101, 1000])
def test_creating_jobs_takes_three_statements_and_a_few_of_them_two(count):
    with statements() as made, Batch.open() as batch:
        batch.map(tasks.ok, range(count))
    few = connection.vendor == "postgresql" and count <= creating.FEW
    assert len(made) == (2 if few else 3), made
    assert batch.total == count
    assert list(batch.jobs.order_by("position").values_list("position", flat=True)) == list(range(count))


def test_a_failure_callback_registered_after_the_first_failure_is_called(monkeypatch):
    monkeypatch.setattr(block, "FLUSH_AT", 1)
    for late in (1, 2):  # with a full buffer at the seal, and with an empty one
        with Batch.open() as batch:
            batch.on_failure(tasks.told, "early")
            batch.map(tasks.ok, [1, 2])
            applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
            batch.on_failure(tasks.told, "late")
            if late == 2:
                batch.block.flush()
        told = batch.callbacks.filter(event="failure").order_by("position")
        assert [job.args for job in told] == [["early"], ["late"]]
        batch.refresh_from_db()
        assert batch.open_callbacks == 2 and repairing.drift(batch.pk) == {}


def test_a_failed_flush_that_is_caught_loses_no_job(monkeypatch, errors):
    monkeypatch.setattr(block, "FLUSH_AT", 5)
    errors.append(DatabaseError("away"))
    with Batch.open() as batch:
        for item in range(5):
            batch.enqueue(tasks.ok, item)
        with pytest.raises(DatabaseError):
            batch.enqueue(tasks.ok, 5)
        batch.enqueue(tasks.ok, 6)
    assert [job.args for job in batch.jobs.all()] == [[0], [1], [2], [3], [4], [6]]


def test_a_path_longer_than_its_column_is_refused():
    with Batch.open() as batch, pytest.raises(FunctionNotAllowed, match="longer than 255"):
        batch.enqueue(tasks.long_name)


def test_wait_raises_if_it_would_never_return():
    with Batch.open() as batch:
        with pytest.raises(BatchError, match="inside the open block"):
            batch.wait()
        batch.enqueue(tasks.ok)
    with transaction.atomic(), pytest.raises(BatchError, match="inside transaction"):
        batch.wait()
    assert batch.wait(timeout=0.01) is False
    batch.cancel()
    assert batch.wait(timeout=1) is True
