"""The cases in which other systems lose a batch, double it or leave it hanging: each test is named after one."""

import os
import signal
import tracemalloc
from datetime import timedelta
from functools import partial

import pytest
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone

from django_batches import Batch, database
from django_batches.coordinator import reconcile
from django_batches.coordinator.prune import Pruner
from django_batches.exceptions import BatchError, BatchFinished
from django_batches.models import BatchJob
from django_batches.testing import drain
from django_batches.transitions import applying, cancelling, deleting
from django_batches.transport.outcomes import Kind

from . import case_tasks, tasks
from .consistency import EVENTS, Rows, drift
from .processes import WorkerProcess, wait_until
from .road import claim, outcome_of, statements
from .transitions.children.trees import running_as
from .transitions.test_races import record_all, together

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def rules():
    yield
    assert Rows.read().broken() == []
    assert drift() == {}


def fill(count=1, func=tasks.ok, events=EVENTS, **options):
    with Batch.open(**options) as batch:
        for event in events:
            getattr(batch, f"on_{event}")(tasks.ok_callback)
        batch.map(func, range(count))
    return batch


def told(batch):
    """The events that were told in this round."""
    batch.refresh_from_db()
    return sorted(batch.callbacks.filter(round=batch.round).values_list("event", flat=True))


def status(batch):
    batch.refresh_from_db()
    return batch.status


def end_all(kind=Kind.SUCCEEDED, batch=None):
    record_all([outcome_of(job, kind) for job in claim(batch)])


def look_twice(road, monkeypatch):
    """As far apart as they must be; what follows from them."""
    monkeypatch.setattr(reconcile, "SECOND_LOOK", 0.0)
    road.reconciler.look()
    road.reconciler.look()
    return road.reconciler.act()


# 1. kill -9 in the last job, in the middle of the accounting, between the commit and the push of the callback


def test_case_1_the_last_job_is_killed(start_worker, ledger):
    start_worker("--workers", 1)
    with Batch.open(max_attempts=2) as batch:
        batch.on_finish(tasks.told, ledger.path, "finish")
        batch.enqueue(case_tasks.dies_once, ledger.path)
    assert batch.wait(60)
    assert ledger.lines == ["run", "run", "finish:succeeded:1/1"]


def test_case_1_the_book_keeper_is_killed_in_the_middle_of_the_accounting(start_worker, ledger):
    worker = start_worker("--workers", 1)
    with Batch.open() as batch:
        batch.on_finish(tasks.told, ledger.path, "finish")
        batch.map(tasks.append_slowly, range(200), ledger.path)
    wait_until(lambda: len(ledger.lines) > 20)
    os.kill(min(worker.children()), signal.SIGKILL)  # the coordinator is the first child
    assert batch.wait(60)
    assert sorted(ledger.lines) == sorted([*map(str, range(200)), "finish:succeeded:200/200"])
    assert batch.callbacks.count() == 1


def test_case_1_the_callback_is_committed_and_never_pushed(road, ledger, monkeypatch):
    with Batch.open() as batch:
        batch.on_finish(tasks.told, ledger.path, "finish")
        batch.enqueue(tasks.ok)
    end_all()
    assert claim(callbacks=True)  # and here its coordinator dies
    assert road.run() == 0
    assert look_twice(road, monkeypatch) == 1
    assert road.run() == 1
    assert ledger.lines == ["finish:succeeded:1/1"]


# 2. the same job executed twice, also at once


def test_case_2_the_same_job_is_executed_twice():
    batch = fill(1)
    (first,) = claim()
    applying.record([outcome_of(first, Kind.INTERRUPTED)])  # its host was only frozen
    (second,) = claim()
    applying.record([outcome_of(first)])
    applying.record([outcome_of(second)])
    assert status(batch) == "succeeded" and batch.succeeded == 1
    assert told(batch) == ["attempted", "finish", "success"]


@pytest.mark.postgresql
def test_case_2_the_same_job_is_executed_twice_at_once():
    for _ in range(30):
        batch = fill(1)
        (first,) = claim()
        applying.record([outcome_of(first, Kind.INTERRUPTED)])
        (second,) = claim()
        together(partial(record_all, [outcome_of(first)]), partial(record_all, [outcome_of(second)]))
        assert status(batch) == "succeeded" and batch.succeeded == 1
        assert told(batch) == ["attempted", "finish", "success"]


# 3. two last jobs end at one instant


def test_case_3_two_last_jobs_end_at_one_instant():
    for _ in range(20):
        batch = fill(2)
        one, other = (partial(record_all, [outcome_of(job)]) for job in claim())
        assert together(one, other) == [None, None]
        assert status(batch) == "succeeded"
        assert told(batch) == ["attempted", "finish", "success"]


# 4. a job fails, is tried again, and succeeds


def test_case_4_a_job_fails_is_tried_again_and_succeeds():
    batch = fill(1, max_attempts=2)
    end_all(Kind.FAILED)
    end_all()
    assert status(batch) == "succeeded" and (batch.succeeded, batch.failed) == (1, 0)
    assert told(batch) == ["attempted", "finish", "success"]
    assert batch.first_failure is None


# 5. a job fails for good, an operator retries it, it succeeds


def test_case_5_a_job_failed_for_good_is_retried_by_an_operator():
    batch = fill(1)
    end_all(Kind.FAILED)
    assert status(batch) == "failed" and told(batch) == ["attempted", "failure", "finish"]
    assert batch.jobs.get().retry()
    end_all()
    assert status(batch) == "succeeded"
    assert told(batch) == ["attempted", "finish", "success"]
    assert batch.callbacks.filter(event="failure").count() == 1  # not again


# 6. an empty batch, an empty child, a retry of nothing


def test_case_6_an_empty_batch_and_an_empty_child_tell_their_callbacks_once_on_their_queue():
    empty = fill(0, queue="images")
    parent = fill(1, events=(), queue="images")
    (job,) = claim()
    with running_as(job) as run:
        child = fill(0)
    applying.record([outcome_of(job, has_children=True, returned=run.children[0])])
    assert status(parent) == "running"  # the child's callbacks are still to run
    drain()
    for batch in (empty, child):
        assert status(batch) == "succeeded"
        assert told(batch) == ["attempted", "finish", "success"]
        assert set(batch.callbacks.values_list("queue", "status")) == {("images", "succeeded")}
    assert status(parent) == "succeeded"


def test_case_6_a_retry_of_a_batch_without_jobs_changes_nothing():
    empty = fill(0)
    drain()
    assert empty.retry_failed(include_cancelled=True) == 0
    assert status(empty) == "succeeded" and empty.round == 0
    assert empty.callbacks.count() == 3


# 7. a job adds 10,000 siblings and dies half-way


def test_case_7_a_job_adds_10_000_siblings_and_dies_half_way(start_worker, ledger):
    start_worker("--workers", 2)
    with Batch.open() as batch:
        batch.on_finish(tasks.told, ledger.path, "finish")
        batch.enqueue(case_tasks.adds_siblings_and_dies_half_way, ledger.path, 10_000)
    assert batch.wait(120)
    assert batch.status == "failed" and batch.failed == 1
    # Written per 1,000: what was buffered when it died never was added.
    assert batch.total == batch.jobs.count() == 1 + 5_000
    assert ledger.lines == ["run", "finish:failed:5000/5001"]


# 8. the first jobs end before the seal, before the commit; the creator rolls back


def test_case_8_the_first_jobs_end_before_the_creator_seals():
    with Batch.open() as batch:
        batch.on_success(tasks.ok_callback)
        batch.enqueue(tasks.ok)
        batch.block.flush()
        end_all()
        assert status(batch) == "open" and told(batch) == []
        batch.enqueue(tasks.ok)
    assert status(batch) == "running" and told(batch) == []
    end_all()
    assert status(batch) == "succeeded" and told(batch) == ["success"]


def test_case_8_nothing_is_seen_before_the_commit_and_nothing_is_left_by_a_rollback():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        fill(2)
        if connection.vendor == "postgresql":
            assert together(claim) == [[]]
        raise ZeroDivisionError
    assert claim() == [] and not Batch.objects.exists() and not BatchJob.objects.exists()


# 9. the creator dies before the seal


def test_case_9_a_batch_that_nobody_seals_is_not_immortal():
    block = Batch.open()
    batch = block.__enter__()
    batch.on_finish(tasks.ok_callback)
    batch.map(tasks.ok, range(2))
    block.flush()  # and here its creator dies
    seconds = 3600
    database.batches().update(grown_at=timezone.now() - timedelta(seconds=seconds + 1))
    assert cancelling.cancel_abandoned(timezone.now() - timedelta(seconds=seconds), seconds) == 1
    assert status(batch) == "cancelled" and told(batch) == ["finish"]
    assert "did not seal the batch" in batch.reason


# 10. cancel while jobs run, cancel twice, cancel and the end at once


def test_case_10_cancel_while_jobs_run_and_cancel_twice():
    batch = fill(3, concurrency=1)
    (runs,) = claim()
    assert batch.cancel() == 2
    assert batch.cancel() == 0
    assert status(batch) == "running"
    applying.record([outcome_of(runs)])
    assert status(batch) == "cancelled" and (batch.succeeded, batch.cancelled) == (1, 2)
    assert told(batch) == ["attempted", "finish"]
    assert batch.cancel() == 0


@pytest.mark.postgresql
def test_case_10_cancel_and_the_end_at_once_are_one_end():
    for _ in range(30):
        batch = fill(1)
        (job,) = claim()
        together(partial(cancelling.cancel, batch.pk), partial(record_all, [outcome_of(job)]))
        events = {"cancelled": ["attempted", "finish"], "succeeded": ["attempted", "finish", "success"]}
        assert told(batch) == events[batch.status]


# 11. a million jobs and 200 workers


def test_case_11_memory_at_creation_does_not_grow_with_the_number_of_jobs():
    def peak(count):
        tracemalloc.start()
        try:
            with Batch.open() as batch:
                batch.map(tasks.ok, range(count))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)
    assert peak(8_000) < 1.5 * peak(2_000)


def test_case_11_outcomes_of_many_workers_take_the_row_of_the_batch_once():
    """Where each of 200 workers updates it for each of its jobs, they queue for it."""
    fill(400, events=["finish"])
    outcomes = [outcome_of(job, worker=f"worker {index % 200}") for index, job in enumerate(claim())]
    with statements() as made:
        applying.record(outcomes[:-1])
    assert len([sql for sql in made if sql.startswith(f"UPDATE {database.BATCH} ")]) == 1
    assert len(made) <= 5, made


# 12. the RQ job has vanished: its time to live, FLUSHALL, somebody deleted it


@pytest.mark.slow
def test_case_12_redis_is_flushed(start_worker, redis, ledger):
    with Batch.open() as batch:
        batch.on_finish(tasks.told, ledger.path + ".told")
        batch.map(tasks.append_slowly, range(100), ledger.path)
    start_worker("--workers", 1, command=WorkerProcess.SHORT_TIMES)
    wait_until(lambda: len(ledger.lines) > 5)
    redis.flushall()
    assert batch.wait(90)
    assert batch.status == "succeeded" and batch.succeeded == 100
    assert set(map(int, ledger.lines)) == set(range(100))
    with open(ledger.path + ".told") as file:
        assert file.read().splitlines() == [":succeeded:100/100"]


def test_case_12_the_hashes_of_rq_jobs_are_deleted(road, redis, monkeypatch):
    batch = fill(4)
    assert road.dispatch() == 4
    assert redis.delete(*redis.keys("rq:job:*")) == 4
    assert road.work() == 0
    look_twice(road, monkeypatch)
    road.run()
    assert status(batch) == "succeeded" and batch.succeeded == 4
    assert told(batch) == ["attempted", "finish", "success"]
    assert set(batch.jobs.values_list("dispatch", "attempts", "losses")) == {(2, 1, 0)}


# 13. a callback raises, or is killed


def test_case_13_a_callback_is_killed_and_runs_again(start_worker, ledger):
    start_worker("--workers", 1)
    with Batch.open(max_attempts=2) as batch:
        batch.on_finish(case_tasks.callback_dies_once, ledger.path)
        batch.enqueue(tasks.ok)
    assert batch.wait(60)
    assert ledger.lines == ["run", "run"]
    assert batch.status == "succeeded" and batch.callbacks.get().status == "succeeded"


def test_case_13_a_callback_that_raises_is_tried_again_and_leaves_the_status_of_its_batch(admin_client):
    with Batch.open("cake") as batch:
        batch.using(max_attempts=2).on_finish(tasks.boom)
        batch.enqueue(tasks.ok)
    drain(raise_failures=False)
    assert status(batch) == "succeeded" and batch.open_callbacks == 0
    callback = batch.callbacks.get()
    assert (callback.status, callback.attempts) == ("failed", 2)
    page = admin_client.get(f"/admin/django_batches/batch/{batch.pk}/change/", follow=True).content.decode()
    assert str(callback.pk) in page


# 14. a callback adds jobs to its own ended batch


@pytest.mark.parametrize("event", ["success", "finish"])
def test_case_14_a_callback_cannot_add_to_its_ended_batch(event):
    with Batch.open() as batch:
        getattr(batch, f"on_{event}")(case_tasks.adds_to_its_ended_batch)
        batch.enqueue(tasks.ok)
    with pytest.raises(BatchFinished, match="has ended; nothing can be added: open another one"):
        drain()
    assert drain() == 0  # no loop
    assert status(batch) == "succeeded" and batch.total == 1
    assert "has ended" in batch.callbacks.get().error


# 15. prune while a callback is pending, or a parent is open


def prune():
    database.batches().filter(finished_at__isnull=False).update(finished_at=timezone.now() - timedelta(days=60))
    config = {"CACHE": "batches", "NAMESPACE": "tests", "RETENTION": {"succeeded": timedelta(days=7)}}
    with override_settings(DJANGO_BATCHES=config):
        pruner = Pruner()
        while pruner.turn():
            pass
        while deleting.unfinished_deletions():
            deleting.continue_deletions()


def test_case_15_a_batch_whose_callback_is_pending_is_not_pruned():
    batch = fill(1, events=["finish"])
    end_all()
    prune()
    assert status(batch) == "succeeded"
    with pytest.raises(BatchError, match="has callbacks that have not ended"):
        batch.delete()
    drain()
    prune()
    assert not Batch.objects.exists()


def test_case_15_a_child_whose_parent_is_open_is_not_pruned():
    parent = fill(2, events=())
    first, second = claim()
    with running_as(first) as run:
        child = fill(1, events=())
    end_all(batch=child)
    prune()
    with pytest.raises(BatchError):
        child.delete()
    applying.record([outcome_of(first, has_children=True, returned=run.children[0])])
    drain()
    prune()
    assert status(child) == "succeeded" and status(parent) == "running"
    applying.record([outcome_of(second)])
    assert status(parent) == "succeeded" and list(parent.results()) == [[1], 1]
    prune()
    assert not Batch.objects.exists()
