"""Cancels in a tree: they reach all children, and the waiting jobs end with them."""

import pytest

from django_batches import Batch, database
from django_batches.exceptions import BatchCancelled
from django_batches.testing import drain
from django_batches.transitions import applying, cancelling, children

from ... import tasks
from ...road import claim, outcome_of
from .trees import open_batch, open_child, returned, running_as, settle

pytestmark = pytest.mark.django_db


def test_a_job_of_a_cancelled_batch_opens_no_child():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    batch.cancel()
    with running_as(job), pytest.raises(BatchCancelled), Batch.open():
        pass


def test_a_cancel_reaches_the_whole_tree_and_ends_the_waiting_jobs():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job, 2)
    applying.record([returned(job)])
    (below, _) = claim(opened)
    grandchild = open_child(below)
    applying.record([returned(below)])
    batch.cancel("enough")
    settle()
    for one in (opened, grandchild):
        one.refresh_from_db()
        assert one.cancelled_at
    batch.refresh_from_db()
    assert batch.pending == 1  # the other job of the child is in RQ: it may be running
    applying.record([outcome_of(_)])
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.cancelled, batch.jobs.get().status) == ("cancelled", 1, "cancelled")


def test_children_that_succeeded_before_the_cancel_stay_succeeded():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    applying.record([outcome_of(below) for below in claim(opened)])
    batch.cancel()
    applying.record([returned(job)])
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.succeeded) == ("cancelled", 1)


def test_cancelling_only_a_child_fails_its_job(ledger):
    batch = open_batch(tasks.open_child, ledger.path)
    (job,) = claim(batch)
    opened = open_child(job)
    applying.record([returned(job)])
    opened.cancel()
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.jobs.get().error) == ("failed", "Its child batch “child” was cancelled.")
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    opened.refresh_from_db()
    assert (batch.status, opened.status) == ("succeeded", "succeeded")


def test_an_interrupted_cancel_reaches_the_children_later():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job, 2)
    applying.record([returned(job)])
    cancelling.cancel(batch.pk)
    assert not Batch.objects.get(pk=opened.pk).cancelled_at
    assert children.cancel_children() == 1
    assert Batch.objects.get(pk=opened.pk).status == "cancelled"
    settle()


@pytest.mark.parametrize("above", [False, True])
def test_a_job_fails_if_its_child_is_cancelled_while_it_adds_jobs_unless_its_own_batch_is(above):
    batch = open_batch(tasks.fill_a_cancelled_child, above)
    drain(raise_failures=False)
    job = batch.jobs.get()
    if above:
        assert (job.status, job.error) == ("cancelled", "")
    else:
        assert job.status == "failed" and "was cancelled; nothing can be added. too many" in job.error
    batch.refresh_from_db()
    assert batch.status == ("cancelled" if above else "failed")


def test_a_callback_of_a_cancelled_batch_fails_if_its_child_is_cancelled_while_it_adds_jobs():
    with Batch.open() as batch:
        batch.on_finish(tasks.fill_a_cancelled_child_in_a_callback)
        batch.enqueue(tasks.ok)
    batch.cancel()
    drain(raise_failures=False)
    callback = batch.callbacks.get()
    assert callback.status == "failed" and "was cancelled; nothing can be added" in callback.error


def test_a_wide_tree_is_cancelled_over_several_turns(monkeypatch):
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    for _ in range(5):
        open_child(job)
    applying.record([returned(job)])
    batch.cancel()
    monkeypatch.setattr(database, "TIME_BUDGET", 0.0)  # so that a turn cancels one
    turns = []
    while Batch.objects.filter(cancelled_at=None).exists():
        turns.append(children.cancel_children())
        assert 0 < turns[-1] < 3
    settle()
    batch.refresh_from_db()
    assert batch.status == "cancelled"
