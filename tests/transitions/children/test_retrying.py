"""Retries in a tree: down to what failed, up to the root, and the callbacks on the way."""

from collections import Counter

import pytest

from django_batches import Batch
from django_batches.exceptions import BatchCancelled, BatchError
from django_batches.models import BatchJob
from django_batches.testing import drain
from django_batches.transitions import applying, deleting, retrying
from django_batches.transport.outcomes import Kind

from ... import tasks
from ...road import claim, outcome_of
from .trees import child, failed_below, open_batch, open_child, returned, run, running_as, settle

pytestmark = pytest.mark.django_db


def test_one_retry_of_the_root_runs_the_leaf_and_the_callbacks_above_it(ledger, broken):
    batch = run(tasks.descend, ledger.path, 4, 1, str(broken), max_attempts=5)
    before = len(ledger.lines)
    broken.unlink()
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.result) == ("succeeded", [1])
    assert ledger.lines[before:] == ["run 0", *(f"callback {depth}" for depth in (1, 2, 3, 4))]
    assert set(Batch.objects.values_list("status", "round")) == {("succeeded", 1)}


def test_a_retry_of_the_leaf_reopens_every_batch_above_it(ledger, broken):
    batch = run(tasks.descend, ledger.path, 3, 1, str(broken))
    leaf = BatchJob.objects.get(status="failed", waited_at=None)
    broken.unlink()
    assert leaf.retry()
    batch.refresh_from_db()
    assert (batch.status, batch.round, batch.jobs.get().status) == ("running", 1, "waiting")
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.result) == ("succeeded", [1])


def test_a_successful_retry_of_the_child_makes_its_parent_succeed(ledger, broken):
    batch = run(tasks.descend, ledger.path, 2, 2, str(broken))
    broken.unlink()
    for below in Batch.objects.filter(description="depth 1"):
        assert below.retry_failed() == 2
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.result) == ("succeeded", [4])
    assert Counter(ledger.lines)["run 1"] == 2


def test_a_retry_that_fails_again_fails_the_tree_again(ledger, broken):
    batch = run(tasks.descend, ledger.path, 3, 1, str(broken))
    batch.retry_failed()
    drain(raise_failures=False)
    batch.refresh_from_db()
    assert (batch.status, batch.round, batch.failed) == ("failed", 1, 1)
    assert batch.failure_groups.get().count == 1
    assert Counter(ledger.lines) == {"run 0": 2, "run 1": 1, "run 2": 1, "run 3": 1}


def test_a_retry_reaches_a_failed_success_callback_and_returns_its_new_result(broken):
    batch = run(tasks.return_child_with, str(broken))
    assert batch.status == "failed"
    broken.unlink()
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.result, child().round) == ("succeeded", ["mended"], 0)


def test_a_retried_callback_of_the_child_reopens_the_batch_above(broken):
    batch = run(tasks.return_child_with, str(broken))
    broken.unlink()
    assert child().callbacks.get().retry()
    batch.refresh_from_db()
    assert (batch.status, batch.jobs.get().status) == ("running", "waiting")
    drain()
    batch.refresh_from_db()
    assert batch.result == ["mended"]


def test_a_retry_below_a_cancelled_batch_is_refused_and_changes_nothing():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    applying.record([returned(job)])
    (below,) = claim(opened)
    batch.cancel()
    applying.record([outcome_of(below, Kind.FAILED)])
    settle()
    batch.refresh_from_db()
    assert batch.status == "cancelled"
    for attempt in (lambda: opened.retry_failed(True), lambda: opened.jobs.get().retry()):
        with pytest.raises(BatchCancelled, match="was cancelled: retry batch"):
            attempt()
    opened.refresh_from_db()
    assert (opened.status, opened.round, opened.jobs.get().status) == ("failed", 0, "failed")


def test_a_child_of_a_failed_run_is_not_retried_beside_its_job():
    with Batch.open(max_attempts=2) as batch:
        batch.enqueue(tasks.ok)
    (job,) = claim(batch)
    orphan = open_child(job)
    applying.record([outcome_of(job, Kind.FAILED)])
    settle()
    with pytest.raises(BatchError, match="No job waits for batch"):
        orphan.retry_failed(include_cancelled=True)


def test_a_cancelled_tree_can_be_retried_from_its_root():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job, 2)
    applying.record([returned(job, opened)])
    batch.cancel()
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.retry_failed()) == ("cancelled", 0)
    assert batch.retry_failed(include_cancelled=True) == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.result) == ("succeeded", [[0, 1]])


def test_a_retry_of_the_first_stage_retries_a_later_failed_stage(ledger, broken):
    with Batch.open("first stage") as batch:
        batch.on_success(tasks.ok_callback)
    (callback,) = claim(callbacks=True)
    opened = open_child(callback)
    applying.record([returned(callback, opened)])
    applying.record([outcome_of(below, Kind.FAILED) for below in claim(opened)])
    settle()
    assert batch.callbacks.get().status == "failed"
    assert Batch.objects.get(pk=batch.pk).retry_failed() == 1
    assert batch.callbacks.get().status == "waiting"
    drain()
    opened.refresh_from_db()
    assert (opened.status, batch.callbacks.get().status, batch.callbacks.get().attempts) == ("succeeded",) * 2 + (1,)


def test_a_retry_continues_in_a_child_once_its_key_is_free(monkeypatch):
    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    batch, opened = failed_below(key="nightly")
    with Batch.open(key="nightly") as other:
        other.enqueue(tasks.ok)
    assert batch.retry_failed() == 0
    settle()
    assert (batch.status, batch.jobs.get().status) == ("running", "failed")
    applying.record([outcome_of(job) for job in claim(other)])
    settle()
    assert batch.jobs.get().status == "waiting"
    drain()
    batch.refresh_from_db()
    opened.refresh_from_db()
    assert (batch.status, opened.status) == ("succeeded", "succeeded")


def test_children_of_two_jobs_with_one_key_are_retried_one_after_the_other(monkeypatch):
    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    with Batch.open() as batch:
        batch.map(tasks.ok, range(2))
    for job in claim(batch):
        opened = open_child(job, key="one at a time")
        applying.record([returned(job)])
        applying.record([outcome_of(below, Kind.FAILED) for below in claim(opened)])
    settle()
    assert batch.retry_failed() == 1
    drain()
    drain()
    batch.refresh_from_db()
    assert batch.status == "succeeded"


def test_children_of_one_job_with_one_key_do_not_stop_the_retry():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    for _ in range(2):
        opened = open_child(job, key="one at a time")
        applying.record([outcome_of(below, Kind.FAILED) for below in claim(opened)])
    applying.record([returned(job)])
    settle()
    batch.refresh_from_db()
    for expected in ("failed", "succeeded"):
        assert batch.retry_failed() == 1
        drain()
        batch.refresh_from_db()
        assert batch.status == expected


def test_a_cancelled_success_callback_of_a_child_is_retried_from_above():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    with running_as(job), Batch.open("child") as opened:
        opened.on_success(tasks.ok_callback)
        opened.enqueue(tasks.ok)
    applying.record([returned(job)])
    applying.record([outcome_of(below) for below in claim(opened)])
    assert opened.callbacks.get().cancel()
    settle()
    batch.refresh_from_db()
    assert batch.status == "failed"
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, opened.callbacks.get().status) == ("succeeded", "succeeded")


def test_a_retry_below_a_batch_that_is_being_deleted_is_refused():
    batch, opened = failed_below()
    drain()
    assert deleting.begin_deletion(batch.pk)
    with pytest.raises(BatchError, match="is being deleted"):
        opened.retry_failed()
    deleting.continue_deletions()
    assert not Batch.objects.exists()


def test_a_job_whose_child_is_retried_keeps_its_result():
    batch, _ = failed_below()
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.jobs.get().result) == ("succeeded", 1)


@pytest.mark.parametrize("in_callback", [False, True])
def test_a_job_that_retries_a_batch_under_cancellation_fails_and_is_not_cancelled(in_callback):
    with Batch.open() as other:
        other.map(tasks.ok, range(2))
    applying.record([outcome_of(claim(other)[0], Kind.FAILED)])
    other.cancel()
    with Batch.open() as batch:
        if in_callback:
            batch.on_finish(tasks.retry_in_a_callback, str(other.pk))
        else:
            batch.enqueue(tasks.retry, str(other.pk))
    drain(raise_failures=False)
    job = batch.callbacks.get() if in_callback else batch.jobs.get()
    assert job.status == "failed" and "is being cancelled: retry once it has ended" in job.error
