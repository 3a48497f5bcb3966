"""Ended batches are pruned by age, in short turns: none with an open callback, and no row of the project."""

from dataclasses import replace
from datetime import timedelta

import pytest
from django.core.checks import run_checks
from django.db import models
from django.db.models.deletion import CASCADE, PROTECT
from django.test import override_settings
from django.utils import timezone

from django_batches import database
from django_batches.conf import settings
from django_batches.coordinator import prune
from django_batches.coordinator.loop import Coordinator
from django_batches.database import foreign_keys
from django_batches.exceptions import BatchError
from django_batches.models import Batch, BatchJob, FailureGroup, TimeBucket
from django_batches.transitions import cancelling, deleting, pruning, repairing, results
from example_project.shop.models import Product

from .. import tasks
from ..admin_data import batch_of, new_callback
from ..commanding import batches
from ..road import open_elsewhere, statements
from .test_races import together

pytestmark = pytest.mark.django_db(transaction=True)

BASE = {"CACHE": "batches", "NAMESPACE": "tests"}
WEEK = timedelta(days=7)
SIZES = (2, pruning.SMALL + 1)


def ended(days, **fields):
    """A batch that ended so many days ago."""
    return batch_of(**{"succeeded": 2, **fields}, finished_at=timezone.now() - timedelta(days=days))


def with_open_callback(days=60, status="created", **fields):
    batch = ended(days, open_callbacks=1, **fields)
    new_callback(batch, status=status)
    return batch


def old(status="succeeded", age=WEEK):
    return pruning.ended_before(status, timezone.now() - age, None, 100)


def prune_all(before=None):
    """Tries to prune each batch that is old enough, even if not `deletable`, alone and as a large one."""
    before = before or timezone.now() - WEEK
    large = [replace(batch, total=pruning.SMALL + 1) for batch in old()]
    return [pruning.prune([batch], before) for batch in [*old(), *large]]


def pruner_turns(limit=500):
    pruner = prune.Pruner()
    for count in range(1, limit):
        if not pruner.turn():
            return count
    raise AssertionError("The pruner never finished.")


def as_if(batch, total):
    """The same batch as if it had that many jobs: small ones are deleted together, large ones alone."""
    return replace(batch, total=total)


def left():
    return set(Batch.objects.values_list("description", flat=True))


def test_each_status_has_its_own_retention():
    ended(8, description="succeeded, 8 d")
    ended(6, description="succeeded, 6 d")
    ended(8, failed=1, description="failed, 8 d")
    ended(31, failed=1, description="failed, 31 d")
    ended(8, cancelled=2, status="cancelled", description="cancelled, 8 d")
    ended(6, cancelled=2, status="cancelled", description="cancelled, 6 d")
    batch_of(running=1, description="running")
    pruner_turns()
    assert left() == {"succeeded, 6 d", "failed, 8 d", "cancelled, 6 d", "running"}


def test_a_pruned_batch_leaves_no_rows_behind():
    batch = ended(60, failed=1)
    new_callback(batch, status="succeeded")
    pruner_turns()
    assert [model.objects.count() for model in (Batch, BatchJob, FailureGroup, TimeBucket)] == [0, 0, 0, 0]


@pytest.mark.parametrize("status", ["created", "scheduled", "queued", "running"])
def test_a_batch_with_an_open_callback_is_not_pruned(status):
    with_open_callback(status=status)
    assert pruning.deletable(old()) == []
    assert prune_all() == [0, 0]
    pruner_turns()
    assert Batch.objects.count() == 1 and BatchJob.objects.count() == 3


@pytest.mark.parametrize("total", SIZES)
def test_a_callback_retried_after_the_selection_keeps_its_batch(total):
    batch = ended(60)
    callback = new_callback(batch, status="failed")
    (chosen,) = pruning.deletable(old())
    assert callback.retry()
    assert not pruning.prune([as_if(chosen, total)], timezone.now() - WEEK)
    batch.refresh_from_db()
    assert (batch.open_callbacks, batch.jobs.count()) == (1, 2)


@pytest.mark.parametrize("total", SIZES)
def test_a_batch_that_was_retried_after_the_selection_is_not_pruned(total):
    batch = ended(60, failed=1)
    (chosen,) = pruning.deletable(old("failed"))
    database.batches().filter(pk=batch.pk).update(finished_at=timezone.now())
    assert not pruning.prune([as_if(chosen, total)], timezone.now() - WEEK)
    with pytest.raises(BatchError, match="has ended again"):
        deleting.begin_deletion(batch.pk, timezone.now() - WEEK)
    assert Batch.objects.get().jobs.count() == 3


@pytest.mark.postgresql
@pytest.mark.parametrize("total", SIZES)
def test_a_prune_and_a_concurrent_retry_of_a_callback_never_lose_the_callback(total):
    """Without the second check, under the lock, the batch is deleted while its callback waits."""
    for _ in range(30):
        callback = new_callback(ended(60), status="failed")
        (chosen,) = pruning.deletable(old())
        before = timezone.now() - WEEK
        group = [as_if(chosen, total)]
        was_pruned, was_retried = together(
            lambda g=group, b=before: bool(pruning.prune(g, b)), lambda c=callback: retry(c)
        )
        assert (was_pruned, was_retried) in [(True, False), (False, True)]
        assert Batch.objects.filter(pk=chosen.id, open_callbacks=1).exists() == was_retried
        assert BatchJob.objects.filter(pk=callback.pk, status="created").exists() == was_retried
        database.batches().update(finished_at=timezone.now())


def retry(callback):
    """Whether the callback is retried."""
    try:
        return BatchJob.objects.filter(pk=callback.pk).retry() == 1
    except BatchError:
        return False


@pytest.mark.parametrize("on_delete", [CASCADE, PROTECT, models.RESTRICT])
def test_a_row_of_the_project_that_would_be_deleted_keeps_its_batch(monkeypatch, on_delete):
    monkeypatch.setattr(Product._meta.get_field("image_batch").remote_field, "on_delete", on_delete)
    held, free = ended(60, description="held"), ended(60, description="free")
    product = Product.objects.create(name="Teapot", image_batch=held)
    assert [batch.id for batch in pruning.deletable(old())] == [free.pk]
    pruner_turns()
    product.refresh_from_db()
    assert left() == {"held"} and product.image_batch == held and held.jobs.count() == 2


def test_a_foreign_key_with_set_null_does_not_keep_its_batch():
    product = Product.objects.create(name="Teapot", image_batch=ended(60))
    pruner_turns()
    product.refresh_from_db()
    assert left() == set() and product.image_batch_id is None


def test_a_prune_turn_is_short_and_the_next_one_continues(monkeypatch):
    for _ in range(5):
        ended(60)
    monkeypatch.setattr(prune, "BUDGET", 0.0)
    monkeypatch.setattr(pruning, "SMALL", 2 * (2 + pruning.PER_BATCH))
    pruner = prune.Pruner()
    assert pruner.turn() and Batch.objects.count() == 3
    assert pruner.turn() and Batch.objects.count() == 1
    assert pruner_turns() == 2 and not Batch.objects.exists()


def test_small_batches_are_pruned_in_one_transaction():
    for _ in range(30):
        ended(60, failed=1)
    with statements() as made:
        pruner_turns()
    assert len(made) < 60 and not Batch.objects.exists()


def test_a_locked_batch_is_skipped_and_the_others_are_pruned(monkeypatch):
    free_one, locked_one = ended(60), ended(60)
    lock = database.lock_batches
    monkeypatch.setattr(database, "lock_batches", lambda ids, **how: lock(set(ids) - {locked_one.pk}, **how))
    pruner_turns()
    assert Batch.objects.get() == locked_one and free_one.pk


def test_the_pruner_gets_past_batches_that_it_cannot_delete(monkeypatch):
    monkeypatch.setattr(prune, "PAGE", 2)
    for days in range(60, 65):
        with_open_callback(days)
    ended(50, description="free")
    pruner_turns()
    assert Batch.objects.count() == 5 and "free" not in left()


def test_the_pruner_has_a_large_batch_deleted_in_chunks(monkeypatch):
    monkeypatch.setattr(database, "CHUNK", 2)
    monkeypatch.setattr(pruning, "SMALL", 2)
    ended(60, succeeded=5)
    pruner_turns()
    assert BatchJob.objects.count() == 5 and deleting.unfinished_deletions() != []
    for _ in range(3):
        deleting.continue_deletions()
    assert not BatchJob.objects.exists() and not Batch.objects.exists()


def test_a_batch_that_ended_in_time_does_not_become_overdue_during_its_deletion():
    batch = ended(60, deadline_at=timezone.now() - timedelta(days=59))
    assert deleting.begin_deletion(batch.pk)
    assert cancelling.mark_overdue(timezone.now()) == 0
    assert cancelling.batches_on_hold() == set() and not cancelling.pause(batch.pk)
    batch.refresh_from_db()
    assert batch.overdue_at is None and not batch.callbacks.exists()


def test_a_batch_keeps_its_status_and_counters_and_frees_its_key_while_it_is_deleted(monkeypatch):
    monkeypatch.setattr(database, "CHUNK", 2)
    batch = ended(60, failed=1, key="import")
    assert deleting.begin_deletion(batch.pk)
    deleting.delete_next_chunk(batch.pk)
    batch.refresh_from_db()
    assert (batch.status, batch.total, batch.succeeded, batch.failed, batch.jobs.count()) == ("failed", 3, 2, 1, 1)
    assert repairing.drift(batch.pk) == {} and pruning.deletable(old("failed")) == []
    assert results.of_batches([batch.pk]) == {}
    with Batch.open(key="import") as again:
        again.enqueue(tasks.ok)


def test_a_deletion_blocked_by_a_row_of_the_project_does_not_stop_the_others(monkeypatch, caplog):
    monkeypatch.setattr(deleting, "BUDGET", 0.0)  # as if the first one alone took longer
    held, free_one = ended(60), ended(60)
    for batch in (held, free_one):
        assert deleting.begin_deletion(batch.pk)
    monkeypatch.setattr(Product._meta.get_field("image_batch").remote_field, "on_delete", PROTECT)
    Product.objects.create(name="Teapot", image_batch=held)
    assert deleting.continue_deletions()
    assert Batch.objects.get() == held and f"A step for batch {held.pk} is postponed" in caplog.text
    assert not deleting.continue_deletions()


def test_one_turn_continues_many_deletions(monkeypatch):
    monkeypatch.setattr(deleting, "BUDGET", 60.0)
    for _ in range(5):
        assert deleting.begin_deletion(ended(60).pk)
    assert deleting.continue_deletions() and not Batch.objects.exists() and not deleting.continue_deletions()


def test_a_deletion_that_a_row_of_the_project_prevents_is_refused_before_it_begins(monkeypatch):
    batch = ended(60)
    monkeypatch.setattr(foreign_keys, "reference", lambda ids, to_jobs_only: "shop.Note.job" if batch.pk in ids else "")
    with pytest.raises(BatchError, match=r"shop.Note.job points to jobs of batch .*: delete those rows first"):
        batch.delete()
    batch.refresh_from_db()
    assert batch.status == "succeeded" and batch.finished_at


@pytest.mark.postgresql
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("held", ["the batch", "a row that points to it"])
def test_the_coordinator_does_not_wait_for_a_locked_row(size, held, monkeypatch):
    monkeypatch.setattr(pruning, "SMALL", 100)
    batch, free_one = ended(60, succeeded=size), ended(59)
    Product.objects.create(name="Teapot", image_batch=batch)
    locked = Batch.objects.filter(pk=batch.pk) if held == "the batch" else Product.objects
    with open_elsewhere(lambda: locked.select_for_update().get()):
        pruner_turns()
        deleting.continue_deletions()
        assert Batch.objects.get() == batch and free_one.pk
    pruner_turns()
    while Batch.objects.exists():
        assert deleting.continue_deletions()
    assert Product.objects.get().image_batch_id is None


def test_the_coordinator_prunes_on_its_timer(redis):
    ended(60)
    coordinator = Coordinator("loop", lambda: True)
    assert coordinator._lease.acquire()
    coordinator._begin()
    coordinator.turn()
    assert not Batch.objects.exists()


class TestTrees:
    """A child batch is deleted with the batch above it, and never before."""

    def tree(self, days=60, **fields):
        top = ended(days, description="top")
        below = [ended(days, description=f"below {n}", parent=top.jobs.get(position=n)) for n in range(2)]
        ended(days, description="deepest", parent=below[0].jobs.first(), **fields)
        return top

    def test_are_kept_while_the_top_is_young(self):
        top = self.tree()
        database.batches().filter(pk=top.pk).update(finished_at=timezone.now())
        pruner_turns()
        assert Batch.objects.count() == 4

    def test_are_deleted_with_the_top_in_chunks(self):
        self.tree()
        pruner_turns()
        assert Batch.objects.get(description="top").deleting_at
        deleting.continue_deletions()
        assert not Batch.objects.exists() and not BatchJob.objects.exists()

    def test_are_deleted_in_full_by_the_command(self):
        self.tree()
        assert "succeeded, older than 7 d: 1 deleted\n" in batches("prune").out
        assert not Batch.objects.exists() and not BatchJob.objects.exists()

    def test_are_kept_while_a_callback_of_one_batch_is_open(self):
        self.tree(open_callbacks=1)
        pruner_turns()
        assert Batch.objects.count() == 4 and BatchJob.objects.count() == 8

    def test_are_kept_while_a_row_of_the_project_points_to_one_batch(self, monkeypatch):
        monkeypatch.setattr(Product._meta.get_field("image_batch").remote_field, "on_delete", CASCADE)
        self.tree()
        Product.objects.create(name="Teapot", image_batch=Batch.objects.get(description="deepest"))
        pruner_turns()
        assert Batch.objects.count() == 4 and Product.objects.exists()

    def test_cannot_be_deleted_until_the_top_has_ended(self):
        top = self.tree()
        database.batches().filter(pk=top.pk).update(open_callbacks=1)
        with pytest.raises(BatchError, match="Nothing was deleted"):
            top.delete()
        assert Batch.objects.count() == 4 and BatchJob.objects.count() == 8


def test_batches_that_ended_at_the_same_time_are_all_pruned(monkeypatch):
    monkeypatch.setattr(prune, "PAGE", 2)
    moment = timezone.now() - timedelta(days=60)
    for _ in range(5):
        batch_of(succeeded=1, finished_at=moment)
    pruner_turns()
    assert not Batch.objects.exists()


class TestRetention:
    @pytest.mark.parametrize(
        ("given", "ages"),
        [
            ({}, (7, 30, 7)),
            ({"succeeded": 86_400}, (1, 30, 7)),
            ({"failed": timedelta(days=90), "cancelled": None}, (7, 90, None)),
            (None, (None, None, None)),
        ],
    )
    def test_is_seconds_a_timedelta_or_none(self, given, ages):
        with override_settings(DJANGO_BATCHES={**BASE, "RETENTION": given}):
            found = [age and age.days for age in settings().RETENTION.values()]
        assert tuple(found) == ages

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"success": 5}, "the key 'success' does not exist; the keys are 'succeeded', 'failed', 'cancelled'"),
            ({"failed": -1}, "'failed' is -1; write seconds or a timedelta, at most 100 years, or None"),
            ({"failed": "7d"}, "write seconds"),
            ({"failed": True}, "write seconds"),
            ({"failed": float("nan")}, "write seconds"),
            ({"failed": 1e300}, "write seconds"),
            ({"failed": timedelta.max}, "at most 100 years"),
            (7, "write a dict with the keys"),
        ],
    )
    def test_that_is_invalid_is_reported_by_the_checks(self, given, words):
        with override_settings(DJANGO_BATCHES={**BASE, "RETENTION": given}):
            (message,) = [message for message in run_checks() if message.id == "django_batches.E002"]
        assert words in message.msg

    def test_of_none_keeps_everything(self):
        ended(6_000)
        with override_settings(DJANGO_BATCHES={**BASE, "RETENTION": None}):
            assert pruner_turns() == 1
        assert Batch.objects.count() == 1
