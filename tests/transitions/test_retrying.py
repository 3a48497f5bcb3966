"""Retries: failed jobs run again, ended batches open another round, and each row is reset once."""

import pytest

from django_batches import Batch, database
from django_batches.exceptions import BatchCancelled
from django_batches.models import FailureGroup
from django_batches.transitions import applying, repairing, retrying, rounds
from django_batches.transport.outcomes import Kind, fingerprint

from .. import tasks
from ..road import claim, outcome_of

pytestmark = pytest.mark.django_db(transaction=True)


def failed_batch(count=4, failures=2, **options):
    with Batch.open(**options) as batch:
        for event in ("success", "failure", "finish"):
            getattr(batch, f"on_{event}")(tasks.told, "path")
        batch.map(tasks.ok, range(count))
    claimed = claim(batch)
    applying.record(
        [outcome_of(job, Kind.FAILED if index < failures else Kind.SUCCEEDED) for index, job in enumerate(claimed)]
    )
    batch.refresh_from_db()
    return batch


def state(batch):
    batch.refresh_from_db()
    assert repairing.drift(batch.pk) == {}
    return (batch.status, batch.pending, batch.succeeded, batch.failed, batch.cancelled, batch.round)


def events(batch, round):
    return sorted(batch.callbacks.filter(round=round).values_list("event", flat=True))


def test_a_retry_opens_another_round_in_which_the_callbacks_are_called_again():
    batch = failed_batch()
    assert state(batch) == ("failed", 0, 2, 2, 0, 0)
    assert events(batch, 0) == ["failure", "finish"]
    assert batch.retry_failed() == 2
    assert state(batch) == ("running", 2, 2, 0, 0, 1)
    assert batch.finished_at is None and batch.first_failure is None
    job = batch.jobs.get(position=0)
    assert (job.status, job.attempts, job.error, job.fingerprint, job.round) == ("created", 0, "", "", 1)
    assert FailureGroup.objects.get().count == 0
    applying.record([outcome_of(job) for job in claim(batch)])
    assert state(batch) == ("succeeded", 0, 4, 0, 0, 1)
    assert events(batch, 1) == ["finish", "success"]


def test_a_retry_that_fails_again_calls_the_failure_callback_of_its_round():
    batch = failed_batch(1, 1)
    batch.retry_failed()
    applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
    assert state(batch) == ("failed", 0, 0, 1, 0, 1)
    assert events(batch, 1) == ["failure", "finish"]
    assert FailureGroup.objects.get().count == 1


def test_a_retry_in_a_running_batch_does_not_call_the_failure_callback_again():
    with Batch.open() as batch:
        batch.on_failure(tasks.told, "path")
        batch.map(tasks.ok, range(2))
    first, _second = claim(batch)
    applying.record([outcome_of(first, Kind.FAILED)])
    assert batch.retry_failed() == 1
    assert state(batch) == ("running", 2, 0, 0, 0, 0)
    (again,) = claim(batch)
    applying.record([outcome_of(again, Kind.FAILED)])
    assert batch.callbacks.filter(event="failure").count() == 1


def test_a_retry_of_nothing_changes_nothing():
    batch = failed_batch(2, 0)
    assert batch.retry_failed() == 0
    assert state(batch) == ("succeeded", 0, 2, 0, 0, 0)


def test_one_job_or_some_jobs_are_retried():
    batch = failed_batch(4, 3)
    assert batch.jobs.get(position=0).retry() is True
    assert state(batch) == ("running", 1, 1, 2, 0, 1)
    assert batch.jobs.get(position=0).retry() is False
    assert batch.jobs.get(position=3).retry() is False
    assert batch.jobs.filter(error__startswith="ValueError").retry() == 2
    assert state(batch) == ("running", 3, 1, 0, 0, 1)
    assert batch.jobs.filter(error__startswith="ValueError").retry() == 0


def test_a_retry_of_a_slice_retries_only_these_jobs(monkeypatch):
    monkeypatch.setattr(database, "CHUNK", 2)
    batch = failed_batch(10, 10)
    assert batch.jobs.filter(status="failed")[:3].retry() == 3
    assert state(batch) == ("running", 3, 0, 7, 0, 1)


def test_a_failure_group_can_be_retried_alone():
    with Batch.open() as batch:
        batch.map(tasks.ok, range(4))
    claimed = claim(batch)
    other = fingerprint("KeyError", "there")
    applying.record([outcome_of(job, Kind.FAILED) for job in claimed[:2]])
    applying.record([outcome_of(job, Kind.FAILED, fingerprint=other) for job in claimed[2:]])
    assert batch.jobs.filter(fingerprint=other).retry() == 2
    assert {group.fingerprint: group.count for group in FailureGroup.objects.filter(batch=batch)} == {
        other: 0,
        fingerprint("ValueError", "here"): 2,
    }
    assert state(batch) == ("running", 2, 0, 2, 0, 1)


def test_cancelled_jobs_are_retried_on_request_and_the_batch_is_no_longer_cancelled():
    batch = failed_batch(1, 1)
    batch.retry_failed()
    batch.cancel("a mistake")
    assert state(batch) == ("cancelled", 0, 0, 0, 1, 1)
    assert batch.retry_failed() == 0
    assert batch.retry_failed(include_cancelled=True) == 1
    assert state(batch) == ("running", 1, 0, 0, 0, 2)
    assert not batch.is_cancelled and batch.reason == ""
    applying.record([outcome_of(job) for job in claim(batch)])
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 2)


def test_a_retry_that_takes_cancelled_jobs_restarts_one_that_does_not(monkeypatch):
    monkeypatch.setattr(database, "CHUNK", 1)
    with Batch.open() as batch:
        batch.map(tasks.ok, range(3))
        batch.using(run_after=60).map(tasks.ok, range(3))
    applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
    batch.cancel()
    assert state(batch) == ("cancelled", 0, 0, 3, 3, 0)
    with monkeypatch.context() as cut_off:
        cut_off.setattr(retrying, "retry_next_chunk", lambda batch_id: (0, False))
        assert batch.retry_failed() == 1
    retrying.retry_next_chunk(batch.pk)
    assert state(batch) == ("running", 2, 0, 1, 3, 1)
    assert batch.retry_failed(include_cancelled=True) == 4
    assert state(batch) == ("running", 6, 0, 0, 0, 1)
    assert batch.retry_position is None


def test_a_batch_that_is_being_cancelled_cannot_be_retried():
    with Batch.open() as batch:
        batch.map(tasks.ok, range(2))
    first, second = claim(batch)
    applying.record([outcome_of(first, Kind.FAILED)])
    batch.cancel()
    with pytest.raises(BatchCancelled, match="retry once it has ended"):
        batch.retry_failed()
    with pytest.raises(BatchCancelled):
        batch.jobs.get(pk=first.id).retry()
    assert state(batch) == ("running", 1, 0, 1, 0, 0)
    applying.record([outcome_of(second)])
    assert batch.retry_failed() == 1


def test_a_retry_takes_failed_callbacks_too():
    with Batch.open() as batch:
        batch.on_finish(tasks.told, "path")
        batch.enqueue(tasks.ok)
    applying.record([outcome_of(job) for job in claim(batch)])
    (callback,) = claim(batch, callbacks=True)
    applying.record([outcome_of(callback, Kind.FAILED)])
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0) and batch.open_callbacks == 0
    assert batch.retry_failed() == 1
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0) and batch.open_callbacks == 1
    (again,) = claim(batch, callbacks=True)
    applying.record([outcome_of(again, Kind.FAILED)])
    assert batch.callbacks.get().retry() is True
    batch.refresh_from_db()
    assert batch.open_callbacks == 1


def test_a_large_retry_commits_chunk_by_chunk_and_the_batch_does_not_end_meanwhile(monkeypatch):
    monkeypatch.setattr(database, "CHUNK", 2)
    batch = failed_batch(6, 5)
    with database.atomic():
        locked = database.lock_batches([batch.pk])[batch.pk]
        locked.retry_position = 0
        rounds.reopen(locked)
    assert list(Batch.objects.filter(retry_position__isnull=False)) == [batch]
    assert retrying.retry_next_chunk(batch.pk) == (2, True)
    applying.record([outcome_of(job) for job in claim(batch)])
    assert state(batch) == ("running", 0, 3, 3, 0, 1)
    assert batch.retry_failed() == 3
    assert not Batch.objects.filter(retry_position__isnull=False).exists()
    assert state(batch) == ("running", 3, 3, 0, 0, 1)
    applying.record([outcome_of(job) for job in claim(batch)])
    assert state(batch) == ("succeeded", 0, 6, 0, 0, 1)
    assert events(batch, 1) == ["finish", "success"]


def test_a_row_that_fails_again_during_a_large_retry_is_not_retried_twice(monkeypatch):
    monkeypatch.setattr(database, "CHUNK", 2)
    batch = failed_batch(4, 4)
    with database.atomic():
        locked = database.lock_batches([batch.pk])[batch.pk]
        locked.retry_position = 0
        rounds.reopen(locked)
    retrying.retry_next_chunk(batch.pk)
    applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
    assert batch.retry_failed() == 2
    assert state(batch) == ("running", 2, 0, 2, 0, 1)


def test_an_outcome_of_the_run_before_the_retry_changes_nothing():
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
    (first,) = claim(batch)
    applying.record([outcome_of(first, Kind.FAILED)])
    batch.retry_failed()
    claim(batch)
    applying.record([outcome_of(first, Kind.FAILED)])
    assert state(batch) == ("running", 1, 0, 0, 0, 1)
