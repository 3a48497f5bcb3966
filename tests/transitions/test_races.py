"""Races between real connections. Each docstring says what would happen without the lock or guard."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from django.db import Error, connection

from django_batches import Batch, database
from django_batches.coordinator import lease
from django_batches.coordinator.lease import Lease
from django_batches.exceptions import BatchFinished
from django_batches.transitions import applying, repairing
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..processes import wait_until
from ..road import claim, outcome_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]


def together(*calls):
    """Runs the calls in threads with their own connections, started together; returns results or errors."""
    barrier = threading.Barrier(len(calls))

    def run(call):
        try:
            connection.ensure_connection()
            barrier.wait(10)
            return call()
        except Exception as error:
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def fill(count, **options):
    with Batch.open(**options) as batch:
        for event in ("success", "failure", "finish", "attempted"):
            getattr(batch, f"on_{event}")(tasks.told, "path")
        batch.map(tasks.ok, range(count))
    return batch


def record_all(outcomes):
    """As two coordinators: each applies what it found locked in its next round."""
    while outcomes:
        outcomes = applying.record(outcomes).postponed


def assert_called_once(batch, status, *events):
    batch.refresh_from_db()
    assert repairing.drift(batch.pk) == {}
    assert batch.status == status
    assert sorted(batch.callbacks.filter(round=batch.round).values_list("event", flat=True)) == sorted(events)


def test_two_last_jobs_that_end_together_end_the_batch_once():
    """Without the lock on the batch row both see the other job pending, and the batch never ends."""
    for _ in range(200):
        batch = fill(2)
        first, second = (outcome_of(job) for job in claim(batch))
        errors = together(lambda o=first: record_all([o]), lambda o=second: record_all([o]))
        assert errors == [None, None]
        assert_called_once(batch, "succeeded", "success", "finish", "attempted")


def test_the_same_outcome_applied_by_two_coordinators_counts_once():
    """Without the status in the WHERE of the update both count it, and the counters go below zero."""
    for _ in range(50):
        batch = fill(3)
        outcomes = [outcome_of(job) for job in claim(batch)]
        assert together(*[lambda o=outcomes: record_all(list(o))] * 3) == [None] * 3
        assert_called_once(batch, "succeeded", "success", "finish", "attempted")


def test_a_failure_and_a_success_of_one_dispatch_together_are_one_outcome():
    for _ in range(50):
        batch = fill(1)
        (job,) = claim(batch)
        killed, done = outcome_of(job, Kind.KILLED), outcome_of(job)
        together(lambda o=killed: record_all([o]), lambda o=done: record_all([o]))
        batch.refresh_from_db()
        assert repairing.drift(batch.pk) == {}
        assert batch.succeeded + batch.failed == 1 and batch.finished_at


def test_two_coordinators_never_claim_the_same_job():
    batch = fill(400)
    found = together(*[lambda: claim(batch)] * 4)
    taken = [job.id for claimed in found for job in claimed]
    taken += [job.id for job in claim(batch)]  # what was locked by another at that moment
    assert len(taken) == len(set(taken)) == 400
    batch.refresh_from_db()
    assert batch.in_flight == 400 and repairing.drift(batch.pk) == {}


def test_a_batch_that_grows_while_it_ends_loses_no_job(way_to_write):
    """Without `finished_at IS NULL` in the growth, a row is added to a batch that has ended and never runs."""
    for _ in range(100):
        batch = fill(1)
        (job,) = claim(batch)
        grown, recorded = together(
            lambda b=batch: Batch.objects.get(pk=b.pk).enqueue(tasks.ok),
            partial(record_all, [outcome_of(job)]),
        )
        assert recorded is None
        batch.refresh_from_db()
        assert repairing.drift(batch.pk) == {}
        if isinstance(grown, BatchFinished):
            assert (batch.status, batch.total) == ("succeeded", 1)
        else:
            assert (batch.status, batch.total, batch.pending) == ("running", 2, 1)
            assert batch.jobs.filter(pk=grown.pk).exists()


def test_concurrent_adds_give_each_position_once(way_to_write):
    batch = fill(1)
    together(*[lambda: Batch.objects.get(pk=batch.pk).map(tasks.ok, range(50))] * 4)
    positions = list(batch.jobs.order_by("position").values_list("position", flat=True))
    assert positions == list(range(201))
    batch.refresh_from_db()
    assert batch.total == 201


def test_a_cancel_and_the_last_outcome_together_end_the_batch_once():
    for _ in range(100):
        batch = fill(2)
        first, _second = claim(batch)
        applying.record([outcome_of(first)])
        _, last = first, outcome_of(_second)
        together(lambda b=batch: Batch.objects.get(pk=b.pk).cancel(), lambda o=last: record_all([o]))
        batch.refresh_from_db()
        assert repairing.drift(batch.pk) == {}
        assert batch.status in ("succeeded", "cancelled")
        assert batch.callbacks.filter(event="finish").count() == 1


def test_two_concurrent_retries_reset_each_failed_job_once():
    """Without the status in the WHERE of the retry the second caller resets the rows that the first has reset."""
    for _ in range(30):
        batch = fill(5)
        record_all([outcome_of(job, Kind.FAILED) for job in claim(batch)])
        found = together(*[lambda b=batch: Batch.objects.get(pk=b.pk).retry_failed()] * 3)
        assert sum(found) == 5
        batch.refresh_from_db()
        assert repairing.drift(batch.pk) == {}
        assert (batch.pending, batch.failed, batch.round) == (5, 0, 1)


def test_a_retry_and_the_last_outcome_together_leave_correct_counters():
    for _ in range(100):
        batch = fill(2)
        first, second = claim(batch)
        record_all([outcome_of(first, Kind.FAILED)])
        last = outcome_of(second)
        together(lambda b=batch: Batch.objects.get(pk=b.pk).retry_failed(), lambda o=last: record_all([o]))
        batch.refresh_from_db()
        assert repairing.drift(batch.pk) == {}
        assert (batch.status, batch.pending, batch.succeeded) == ("running", 1, 1)
        assert batch.retry_position is None


def test_outcomes_of_the_same_batches_in_another_order_do_not_deadlock():
    """Without the order of the locks one of two such transactions is aborted (or, waiting, delays the other)."""
    for _ in range(20):
        batches = [fill(1) for _ in range(10)]
        outcomes = [outcome_of(job) for job in claim()]
        found = together(lambda o=outcomes: record_all(o), lambda o=outcomes[::-1]: record_all(o))
        assert found == [None, None]
        for batch in batches:
            assert_called_once(batch, "succeeded", "success", "finish", "attempted")


def test_a_seal_and_the_last_outcome_together_end_the_batch_once():
    for _ in range(100):
        block = Batch.open()
        with block as batch:
            batch.on_finish(tasks.told, "path")
            batch.enqueue(tasks.ok)
            block.flush()
            (job,) = claim(batch)
            together(block.seal, partial(record_all, [outcome_of(job)]))
        assert_called_once(batch, "succeeded", "finish")


def test_concurrent_pauses_and_resumes_each_count_once():
    batch = fill(1)
    assert sorted(together(*[lambda: Batch.objects.get(pk=batch.pk).pause()] * 4)) == [False, False, False, True]
    assert sorted(together(*[lambda: Batch.objects.get(pk=batch.pk).resume()] * 4)) == [False, False, False, True]


def test_a_coordinator_lost_in_the_middle_of_a_transaction_does_not_stop_the_next_one(monkeypatch):
    """Its session would hold the row of the lease until the server misses the client: by default after two hours."""
    monkeypatch.setattr(lease, "SECONDS", 3)
    lost, found, over = Lease("lost"), threading.Event(), threading.Event()

    def keep():
        try:
            assert lost.acquire()
            with database.atomic():
                lost()
                found.set()
                over.wait(60)
        finally:
            connection.close()

    def take_over():
        found.wait(10)
        try:
            return wait_until(Lease("next").acquire, 20)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        active_coordinator, begun = pool.submit(keep), time.monotonic()
        pool.submit(take_over).result(30)
        seconds = time.monotonic() - begun
        over.set()
        assert isinstance(active_coordinator.exception(10), Error)
    assert seconds < 20
