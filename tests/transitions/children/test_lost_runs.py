"""Runs that no longer count: the batches they opened are cancelled, and no job waits for them."""

import pytest

from django_batches import Batch
from django_batches.exceptions import BatchCancelled, BatchFinished
from django_batches.transitions import applying, children
from django_batches.transport.outcomes import Kind

from ... import tasks
from ...road import claim, outcome_of
from .trees import open_batch, open_child, returned, running_as, settle

pytestmark = pytest.mark.django_db


def test_a_killed_attempt_that_had_sealed_a_child_leaves_no_orphan_running():
    with Batch.open(max_attempts=2) as batch:
        batch.enqueue(tasks.ok)
    (job,) = claim(batch)
    orphan = open_child(job, 3)
    claim(orphan)
    recorded = applying.record([outcome_of(job, Kind.KILLED)])
    assert recorded.given_up == [job.id]
    children.cancel_orphans(recorded.given_up)
    orphan.refresh_from_db()
    assert orphan.cancelled_at and not orphan.is_awaited
    (again,) = claim(batch)
    second = open_child(again)
    applying.record([returned(again, second)])
    applying.record([outcome_of(below) for below in claim(second)])
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.result) == ("succeeded", [[1]])


def test_an_attempt_killed_inside_the_block_leaves_no_open_and_no_awaited_batch():
    with Batch.open(max_attempts=2) as batch:
        batch.enqueue(tasks.ok)
    (job,) = claim(batch)
    with running_as(job):
        block = Batch.open("child")
        orphan = block.__enter__()
        orphan.enqueue(tasks.ok)
        block.flush()
    applying.record([outcome_of(job, Kind.KILLED)])
    settle()
    orphan.refresh_from_db()
    assert (orphan.status, orphan.is_awaited) == ("cancelled", False)
    (again,) = claim(batch)
    applying.record([outcome_of(again)])
    batch.refresh_from_db()
    assert batch.status == "succeeded"
    with pytest.raises(BatchCancelled):
        block.seal() or (block.batch.enqueue(tasks.ok) and block.flush())


def test_a_run_that_no_longer_counts_cannot_open_a_child():
    batch = open_batch(tasks.ok)
    (old,) = claim(batch)
    applying.record([outcome_of(old, Kind.INTERRUPTED)])
    for claimed_again in (False, True):
        if claimed_again:
            claim(batch)
        with running_as(old), pytest.raises(BatchFinished, match="does not count any more"), Batch.open():
            pass
    assert Batch.objects.count() == 1


def test_a_late_success_whose_children_were_cancelled_does_not_count():
    batch = open_batch(tasks.ok)
    (old,) = claim(batch)
    orphan = open_child(old)
    applying.record([outcome_of(old, Kind.INTERRUPTED)])
    settle()
    (new,) = claim(batch)
    applying.record([returned(old, orphan)])
    assert batch.jobs.get().status == "queued"
    applying.record([outcome_of(new)])
    assert batch.jobs.get().status == "succeeded"


def test_a_late_success_wins_over_a_waiting_run_whose_children_are_then_cancelled():
    batch = open_batch(tasks.ok)
    (old,) = claim(batch)
    applying.record([outcome_of(old, Kind.INTERRUPTED)])
    (new,) = claim(batch)
    opened = open_child(new)
    applying.record([returned(new, opened)])
    recorded = applying.record([outcome_of(old)])
    children.cancel_orphans(recorded.given_up)
    opened.refresh_from_db()
    assert (batch.jobs.get().status, opened.status, opened.is_awaited) == ("succeeded", "cancelled", False)
