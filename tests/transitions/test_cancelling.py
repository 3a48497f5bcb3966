"""Cancel, pause, resume and seal: they affect waiting jobs at once, and jobs in RQ only through their outcomes."""

from datetime import timedelta

import pytest
from django.utils import timezone

from django_batches import Batch, database
from django_batches.database.inserting import NewJob
from django_batches.database.uuid7 import uuid7
from django_batches.transitions import applying, cancelling, creating, repairing
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..road import claim, outcome_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def batch():
    with Batch.open() as batch:
        batch.on_finish(tasks.told, "path")
        batch.map(tasks.ok, range(4))
    return batch


def state(batch):
    batch.refresh_from_db()
    assert repairing.drift(batch.pk) == {}
    return (batch.status, batch.pending, batch.succeeded, batch.failed, batch.cancelled, batch.in_flight)


def limited_claim(count):
    """Puts `count` jobs in flight."""
    claimed = claim()
    applying.record([outcome_of(job, Kind.VANISHED) for job in claimed[count:]])
    return claimed[:count]


def test_a_cancel_ends_waiting_jobs_and_lets_those_in_rq_finish(batch):
    running = limited_claim(2)
    assert batch.cancel("enough") == 2
    assert state(batch) == ("running", 2, 0, 0, 2, 2)
    assert batch.is_cancelled and batch.reason == "enough"
    applying.record([outcome_of(running[0]), outcome_of(running[1], Kind.ON_HOLD)])
    assert state(batch) == ("cancelled", 0, 1, 0, 3, 0)
    assert batch.callbacks.get().event == "finish"


def test_a_second_cancel_and_a_cancel_of_an_ended_batch_change_nothing(batch):
    assert batch.cancel() == 4
    assert state(batch) == ("cancelled", 0, 0, 0, 4, 0)
    assert batch.cancel("again") == 0
    assert batch.reason == "" and batch.callbacks.count() == 1


def test_a_failed_run_of_a_cancelled_batch_is_not_retried():
    with Batch.open(max_attempts=5, backoff=60) as batch:
        batch.enqueue(tasks.boom)
    (running,) = claim()
    batch.cancel()
    applying.record([outcome_of(running, Kind.FAILED)])
    assert state(batch) == ("cancelled", 0, 0, 1, 0, 0)


def test_a_cancel_ends_scheduled_jobs():
    with Batch.open(max_attempts=5, backoff=60) as batch:
        batch.enqueue(tasks.boom)
    applying.record([outcome_of(job, Kind.FAILED) for job in claim()])
    assert batch.jobs.get().status == "scheduled"
    assert batch.cancel() == 1
    assert state(batch) == ("cancelled", 0, 0, 0, 1, 0)


def test_a_large_cancel_commits_chunk_by_chunk(batch, monkeypatch):
    monkeypatch.setattr(database, "CHUNK", 2)
    assert batch.cancel() == 4
    assert state(batch) == ("cancelled", 0, 0, 0, 4, 0)


def test_the_coordinator_continues_an_interrupted_cancel(batch, monkeypatch):
    Batch.objects.filter(pk=batch.pk).update(cancelled_at=timezone.now())
    monkeypatch.setattr(database, "CHUNK", 3)
    assert cancelling.unfinished_cancels() == [batch.pk]
    assert cancelling.cancel_next_chunk(batch.pk) == 3
    assert cancelling.cancel_next_chunk(batch.pk) == 1
    assert cancelling.unfinished_cancels() == []
    assert state(batch) == ("cancelled", 0, 0, 0, 4, 0)


def test_a_paused_batch_starts_no_job_until_it_is_resumed(batch):
    running = limited_claim(2)
    assert batch.pause() is True and batch.pause() is False
    assert batch.is_paused and cancelling.batches_on_hold() == {batch.pk}
    assert claim() == []
    applying.record([outcome_of(running[0]), outcome_of(running[1], Kind.ON_HOLD)])
    assert state(batch) == ("running", 3, 1, 0, 0, 0)
    assert batch.resume() is True and batch.resume() is False
    applying.record([outcome_of(job) for job in claim()])
    assert state(batch) == ("succeeded", 0, 4, 0, 0, 0)


def test_an_ended_batch_cannot_be_paused(batch):
    batch.cancel()
    assert batch.pause() is False and batch.resume() is False


def test_one_job_is_cancelled_and_its_batch_cannot_succeed(batch):
    job = batch.jobs.get(position=1)
    assert job.cancel() is True and job.cancel() is False
    assert job.status == "cancelled"
    applying.record([outcome_of(claimed) for claimed in claim()])
    assert state(batch) == ("failed", 0, 3, 0, 1, 0)


def test_a_single_job_that_is_in_rq_cannot_be_cancelled(batch):
    (running,) = limited_claim(1)
    assert batch.jobs.get(pk=running.id).cancel() is False
    assert state(batch) == ("running", 4, 0, 0, 0, 1)


def test_cancelling_a_callback_does_not_change_the_counters(batch):
    batch.cancel()
    assert batch.callbacks.get().cancel() is True
    assert state(batch) == ("cancelled", 0, 0, 0, 4, 0)
    assert batch.open_callbacks == 0


def test_an_abandoned_open_batch_is_cancelled_with_a_reason():
    with Batch.open() as batch:
        batch.on_finish(tasks.told, "path")
        batch.map(tasks.ok, range(3))
        batch.block.flush()
        database.batches().filter(pk=batch.pk).update(grown_at=timezone.now() - timedelta(hours=2))
        assert cancelling.cancel_abandoned(timezone.now() - timedelta(hours=1), 3600) == 1
        assert state(batch) == ("cancelled", 0, 0, 0, 3, 0)
        assert "added no job for 3600 seconds and did not seal" in batch.reason
        assert cancelling.cancel_abandoned(timezone.now(), 3600) == 0
    assert batch.callbacks.get().event == "finish"


def test_a_batch_that_is_sealed_or_grows_in_time_is_not_cancelled(monkeypatch):
    """Seconds may pass between the query and the cancel of a batch: others are cancelled first."""
    quiet_since = timezone.now() + timedelta(seconds=1)
    with Batch.open() as sealed:
        sealed.map(tasks.ok, range(3))
    open_one = Batch.open().batch
    creating.create(open_one)
    database.batches().filter(pk=open_one.pk).update(grown_at=quiet_since)
    monkeypatch.setattr(cancelling, "abandoned_batches", lambda quiet_since: [sealed.pk, open_one.pk])
    cancelling.cancel_abandoned(quiet_since, 3600)
    assert not Batch.objects.filter(cancelled_at__isnull=False).exists()


def test_the_coordinator_cancels_one_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(database, "CHUNK", 2)
    batch = Batch.open().batch
    creating.create(batch)
    creating.add(batch.pk, [new_job(batch) for _ in range(5)])
    cancelling.cancel_abandoned(timezone.now() + timedelta(seconds=1), 0)
    assert state(batch) == ("open", 3, 0, 0, 2, 0)
    assert [cancelling.continue_cancels() for _ in range(3)] == [2, 1, 0]
    assert state(batch) == ("cancelled", 0, 0, 0, 5, 0)


def test_many_cancels_take_several_turns(batch, monkeypatch):
    with Batch.open() as other:
        other.map(tasks.ok, range(4))
    database.batches().update(cancelled_at=timezone.now())
    monkeypatch.setattr(database, "TIME_BUDGET", -1.0)
    assert [cancelling.continue_cancels() for _ in range(3)] == [4, 4, 0]
    for _ in range(2):
        creating.create(Batch.open().batch)
    quiet_since = timezone.now() + timedelta(seconds=1)
    for left in (1, 0):
        cancelling.cancel_abandoned(quiet_since, 0)
        assert len(cancelling.abandoned_batches(quiet_since)) == left


def test_drift_of_one_batch_does_not_stop_the_cancel_of_another(batch, caplog):
    with Batch.open() as other:
        other.map(tasks.ok, range(3))
    for each in (batch, other):
        database.batches().filter(pk=each.pk).update(cancelled_at=timezone.now())
    database.batches().filter(pk=batch.pk).update(pending=3, total=3)
    assert cancelling.continue_cancels() == 3
    assert "differ from its rows" in caplog.text
    assert cancelling.continue_cancels() == 4
    assert state(batch) == ("cancelled", 0, 0, 0, 4, 0) and state(other) == ("cancelled", 0, 0, 0, 3, 0)


def test_a_creator_that_dies_between_two_chunks_leaves_correct_counters():
    batch = Batch.open().batch
    creating.create(batch)
    creating.add(batch.pk, [new_job(batch) for _ in range(3)])
    applying.record([outcome_of(job) for job in claim()])
    assert state(batch) == ("open", 0, 3, 0, 0, 0)
    assert cancelling.cancel_abandoned(timezone.now() + timedelta(seconds=1), 0) == 1
    assert state(batch) == ("cancelled", 0, 3, 0, 0, 0)


def test_a_batch_that_its_creator_left_open_can_be_sealed():
    batch = Batch.open().batch
    creating.create(batch)
    creating.add(batch.pk, [new_job(batch)])
    assert Batch.objects.get().seal() is True
    applying.record([outcome_of(job) for job in claim()])
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0)
    assert Batch.objects.get().seal() is False


def test_the_coordinator_ends_a_batch_with_nothing_pending():
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
    claim()
    database.jobs().update(status="succeeded")
    database.batches().update(pending=0, succeeded=1, in_flight=0)
    assert repairing.end_batches() == 1
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0)
    assert repairing.end_batches() == 0


def test_drifted_counters_are_repaired_and_logged_as_an_error(batch, caplog):
    database.batches().filter(pk=batch.pk).update(pending=3, succeeded=1)
    assert repairing.drift(batch.pk) == {"pending": 1, "succeeded": -1}
    assert repairing.repair_counters(batch.pk) is True
    assert "differ from its rows by {'pending': 1, 'succeeded': -1}; repaired" in caplog.text
    assert state(batch) == ("running", 4, 0, 0, 0, 0)
    assert repairing.repair_counters(batch.pk) is False


def new_job(batch):
    return NewJob(uuid7(), "tests.tasks.ok", "[[],{}]", "default", 10, 1, "0", "[]", timezone.now(), None, batch.pk)
