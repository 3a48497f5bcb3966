"""Each outcome counts once, in any order, and however often it arrives."""

import itertools
import json
import time
from datetime import UTC, datetime

import pytest
from django.db import DatabaseError, Error, connection, transaction
from django.utils import timezone

from django_batches import Batch, database
from django_batches.calls.arguments import clean_name
from django_batches.coordinator.lease import Lease, LeaseLost
from django_batches.database import inserting
from django_batches.database.inserting import NewJob
from django_batches.models import BatchJob, FailureGroup, TimeBucket
from django_batches.transitions import applying, cancelling, claiming, job_updates, repairing
from django_batches.transport.outcomes import Kind, Outcome

from .. import tasks
from ..road import claim, open_elsewhere, outcome_of, statements

pytestmark = pytest.mark.django_db(transaction=True)


def open_batch(count=1, **options):
    with Batch.open(**options) as batch:
        for event in ("success", "failure", "finish", "attempted"):
            getattr(batch, f"on_{event}")(tasks.told, "path")
        batch.map(tasks.ok, range(count))
    return batch


def state(batch):
    batch.refresh_from_db()
    assert repairing.drift(batch.pk) == {}
    return (batch.status, batch.pending, batch.succeeded, batch.failed, batch.cancelled, batch.in_flight)


def events(batch):
    return sorted(batch.callbacks.values_list("event", flat=True))


def job_of(batch):
    return batch.jobs.get()


def test_a_success_is_counted_and_ends_the_batch():
    batch = open_batch()
    (claimed,) = claim(batch)
    started = datetime(2026, 1, 1, tzinfo=UTC)
    applying.record([outcome_of(claimed, result='{"a":1}', worker="w", started_at=started, finished_at=started)])
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0)
    assert events(batch) == ["attempted", "finish", "success"]
    job = job_of(batch)
    assert (job.status, job.result, job.attempts, job.worker) == ("succeeded", {"a": 1}, 1, "w")
    assert job.started_at == job.finished_at == batch.started_at == started


def test_callbacks_are_claimed_in_the_transaction_that_schedules_them():
    first, second, third = open_batch(), open_batch(), open_batch()
    jobs = claim()
    recorded = applying.record([outcome_of(job) for job in jobs[:2]], claims=5)
    assert recorded.scheduled == 6 and len(recorded.claimed) == 5
    assert all(job.dispatch == 1 and job.event for job in recorded.claimed)
    assert len(claim(callbacks=True)) == 1, "what was claimed is not claimed again"
    assert applying.record([outcome_of(jobs[2], Kind.ON_HOLD)], claims=5).claimed == []
    assert [state(batch)[0] for batch in (first, second, third)] == ["succeeded", "succeeded", "running"]


def test_a_duplicate_outcome_counts_once_even_in_one_transaction():
    batch = open_batch(2)
    first, _ = claim(batch)
    applying.record([outcome_of(first), outcome_of(first)])
    applying.record([outcome_of(first)])
    assert state(batch) == ("running", 1, 1, 0, 0, 1)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("together", [True, False])
def test_outcomes_of_superseded_dispatches_count_once_in_every_order(order, together):
    batch = open_batch()
    (first,) = claim(batch)
    applying.record([outcome_of(first, Kind.INTERRUPTED)])
    (second,) = claim(batch)
    assert second.dispatch == first.dispatch + 1
    outcomes = [outcome_of(first, Kind.FAILED), outcome_of(second), outcome_of(first, Kind.INTERRUPTED)]
    chunks = [[outcomes[index] for index in order]] if together else [[outcomes[index]] for index in order]
    for chunk in chunks:
        applying.record(chunk)
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0)
    assert events(batch) == ["attempted", "finish", "success"]


def test_a_failure_of_a_superseded_dispatch_does_not_change_the_current_run():
    batch = open_batch(max_attempts=2)
    (first,) = claim(batch)
    applying.record([outcome_of(first, Kind.INTERRUPTED)])
    claim(batch)
    applying.record([outcome_of(first, Kind.FAILED)])
    assert state(batch) == ("running", 1, 0, 0, 0, 1)
    assert (job_of(batch).attempts, job_of(batch).losses) == (0, 1)


def test_a_late_success_returns_the_later_run_that_must_not_start():
    batch = open_batch()
    (first,) = claim(batch)
    applying.record([outcome_of(first, Kind.INTERRUPTED)])
    (second,) = claim(batch)
    assert applying.record([outcome_of(first)]).superseded == [(second.id, 2, "default")]


@pytest.mark.parametrize("claimed_again", [True, False])
def test_a_late_success_wins_while_the_row_has_not_ended(claimed_again):
    batch = open_batch()
    (first,) = claim(batch)
    applying.record([outcome_of(first, Kind.INTERRUPTED)])
    second = claim(batch) if claimed_again else []
    applying.record([outcome_of(first, result='"late"')])
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0)
    assert job_of(batch).result == "late"
    applying.record([outcome_of(job, Kind.FAILED) for job in second])
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0)


def test_a_late_success_of_an_ended_row_changes_nothing():
    batch = open_batch()
    (claimed,) = claim(batch)
    applying.record([outcome_of(claimed, Kind.FAILED)])
    applying.record([outcome_of(claimed)])
    assert state(batch) == ("failed", 0, 0, 1, 0, 0)


def test_a_success_wins_over_a_failure_of_the_same_run_in_one_transaction():
    batch = open_batch()
    (claimed,) = claim(batch)
    applying.record([outcome_of(claimed, Kind.KILLED), outcome_of(claimed)])
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0)


def test_a_job_fails_after_its_last_attempt_and_the_failure_callback_runs_at_once():
    batch = open_batch(2, max_attempts=3)
    for attempt in (1, 2):
        failing = claim(batch)[0] if attempt == 1 else claim(batch)[-1]
        applying.record([outcome_of(failing, Kind.FAILED)])
        assert (job.attempts, job.status) == (attempt, "created") if (job := batch.jobs.get(pk=failing.id)) else None
    assert events(batch) == []
    (last,) = claim(batch)
    applying.record([outcome_of(last, Kind.FAILED, traceback="where", error="ValueError: no")])
    assert state(batch) == ("running", 1, 0, 1, 0, 1)
    assert events(batch) == ["failure"]
    failed = batch.jobs.get(pk=last.id)
    assert (failed.status, failed.attempts, failed.error, failed.traceback) == ("failed", 3, "ValueError: no", "where")
    assert batch.first_failure == failed


def test_the_next_attempt_waits_for_its_backoff():
    batch = open_batch(max_attempts=3, backoff=[60, 5])
    (claimed,) = claim(batch)
    applying.record([outcome_of(claimed, Kind.FAILED)])
    job = job_of(batch)
    assert job.status == "scheduled"
    assert 50 < (job.due_at - datetime.now(UTC)).total_seconds() <= 60
    assert state(batch) == ("running", 1, 0, 0, 0, 0)
    assert claim(batch) == []


def test_a_final_failure_gets_no_further_attempt():
    batch = open_batch(max_attempts=5)
    (claimed,) = claim(batch)
    applying.record([outcome_of(claimed, Kind.FAILED, is_final=True)])
    assert state(batch) == ("failed", 0, 0, 1, 0, 0)


def test_a_returned_retry_has_its_own_limit():
    batch = open_batch(max_attempts=1)
    for _ in range(3):
        (claimed,) = claim(batch)
        assert state(batch)[0] == "running"
        applying.record([outcome_of(claimed, Kind.RETRY, retry_max=2, retry_after=0.0)])
    assert state(batch) == ("failed", 0, 0, 1, 0, 0)
    assert job_of(batch).attempts == 3


def test_a_killed_run_uses_an_attempt_but_an_interrupted_or_vanished_one_does_not():
    batch = open_batch(max_attempts=2)
    for kind, attempts, losses in [(Kind.VANISHED, 0, 0), (Kind.INTERRUPTED, 0, 1), (Kind.KILLED, 1, 2)]:
        (claimed,) = claim(batch)
        applying.record([outcome_of(claimed, kind)])
        assert (job_of(batch).attempts, job_of(batch).losses) == (attempts, losses)
        assert job_of(batch).status == "created"


def test_a_poison_pill_fails_at_its_third_loss_and_vanishing_has_no_limit():
    batch = open_batch(max_attempts=100)
    for _ in range(5):
        applying.record([outcome_of(claim(batch)[0], Kind.VANISHED)])
    for kind in (Kind.KILLED, Kind.INTERRUPTED, Kind.KILLED):
        recorded = applying.record([outcome_of(claim(batch)[0], kind)])
    assert state(batch) == ("failed", 0, 0, 1, 0, 0)
    assert job_of(batch).error.startswith("Its worker was killed or lost while it ran, 3 losses in all.")
    assert [change.outcome.job_id for change in recorded.failures] == [job_of(batch).pk]


def test_attempted_callbacks_run_once_when_every_job_has_been_tried():
    batch = open_batch(2, max_attempts=2)
    first, second = claim(batch)
    applying.record([outcome_of(first, Kind.FAILED)])
    assert events(batch) == []
    applying.record([outcome_of(second)])
    assert events(batch) == ["attempted"]
    applying.record([outcome_of(claim(batch)[0])])
    assert events(batch) == ["attempted", "finish", "success"]


def test_an_open_batch_does_not_end():
    with Batch.open() as batch:
        batch.on_success(tasks.told, "path")
        batch.enqueue(tasks.ok)
        batch.block.flush()
        applying.record([outcome_of(job) for job in claim(batch)])
        assert state(batch) == ("open", 0, 1, 0, 0, 0)
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0)
    assert events(batch) == ["success"]


def test_a_callback_changes_no_counter_of_jobs_and_its_failure_no_status():
    batch = open_batch()
    applying.record([outcome_of(job) for job in claim(batch)])
    callbacks = claim(batch, callbacks=True)
    assert len(callbacks) == 3
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0)
    applying.record([outcome_of(callbacks[0]), outcome_of(callbacks[1], Kind.FAILED), outcome_of(callbacks[0])])
    assert state(batch) == ("succeeded", 0, 1, 0, 0, 0)
    assert batch.open_callbacks == 1
    assert events(batch) == ["attempted", "finish", "success"]


def test_the_result_is_the_return_value_of_the_first_success_callback():
    batch = open_batch()
    applying.record([outcome_of(job) for job in claim(batch)])
    batch.refresh_from_db()
    assert batch.result is None
    callback = next(job for job in claim(batch, callbacks=True) if job.event == "success")
    applying.record([outcome_of(callback, result='"merged"')])
    batch.refresh_from_db()
    assert batch.result == "merged"


def test_outcomes_of_deleted_rows_are_done():
    batch = open_batch(2)
    claimed = claim(batch)
    batch.jobs.filter(pk=claimed[0].id)._raw_delete("default")
    lost = Outcome(Kind.SUCCEEDED, claimed[0].id, 1, claimed[0].id)
    recorded = applying.record([outcome_of(claimed[0]), outcome_of(claimed[1]), lost])
    assert len(recorded.done) == 3 and recorded.postponed == []


def test_time_buckets_and_failure_groups_count_ended_jobs():
    batch = open_batch(5)
    claimed = claim(batch)
    applying.record([outcome_of(job) for job in claimed[:2]])
    applying.record([outcome_of(job, Kind.FAILED) for job in claimed[2:]])
    assert sum(bucket.succeeded for bucket in TimeBucket.objects.all()) == 2
    assert sum(bucket.failed for bucket in TimeBucket.objects.all()) == 3
    group = FailureGroup.objects.get()
    assert (group.error_type, group.sample, group.count) == ("ValueError", "ValueError: no", 3)


def test_a_refused_outcome_fails_only_its_own_job():
    batches = [open_batch(50) for _ in range(10)]
    claimed = claim()
    outcomes = [outcome_of(job) for job in claimed]
    assert len(outcomes) == 500
    # Not by the encoder, which would refuse it.
    culprit = outcomes[333]
    if connection.vendor == "postgresql":
        culprit.result = "a\x00b"
    else:
        culprit.kind, culprit.error = Kind.FAILED, None
    recorded = applying.record(outcomes)
    assert len(recorded.done) == 500
    assert BatchJob.objects.filter(status="succeeded", batch__isnull=False).count() == 499
    failed = BatchJob.objects.get(status="failed")
    assert failed.pk == culprit.job_id
    assert f"The outcome ({culprit.kind}) could not be written" in failed.error
    assert [state(batch)[0] for batch in batches].count("succeeded") == 9


def test_a_counter_that_does_not_add_up_blocks_no_other_batch(caplog):
    wrong, right = open_batch(2), open_batch(2)
    outcomes = [outcome_of(job) for job in claim()]
    database.batches().filter(pk=wrong.pk).update(in_flight=0)
    recorded = applying.record(outcomes)
    assert len(recorded.done) == 4
    assert state(right)[0] == "succeeded"
    assert "differ from its rows" in caplog.text
    assert state(wrong)[1] == 0


def test_names_longer_than_their_columns_are_cut():
    batch = open_batch(max_attempts=2)
    (claimed,) = claim(batch)
    applying.record([outcome_of(claimed, Kind.FAILED, error_type="x" * 200, worker="w" * 200)])
    assert job_of(batch).status == "created"
    assert len(clean_name("x\x00" * 300)) == 200


def test_a_lost_connection_fails_no_job(monkeypatch):
    batch = open_batch()
    claimed = claim(batch)

    def away(*args, **kwargs):
        raise DatabaseError("connection lost")

    monkeypatch.setattr(job_updates, "write", away)
    with pytest.raises(DatabaseError, match="connection lost"):
        applying.record([outcome_of(job) for job in claimed])
    monkeypatch.undo()
    assert state(batch) == ("running", 1, 0, 0, 0, 1)


def test_a_lost_lease_applies_nothing():
    batch = open_batch()

    def fence():
        raise LeaseLost("frozen")

    with pytest.raises(LeaseLost):
        applying.record([outcome_of(job) for job in claim(batch)], fence)
    assert state(batch) == ("running", 1, 0, 0, 0, 1)


def test_applying_500_outcomes_of_one_batch_takes_five_statements():
    with Batch.open() as batch:
        batch.on_finish(tasks.told, "path")
        batch.map(tasks.ok, range(501))
    outcomes = [outcome_of(job) for job in claim(batch)][:500]
    lease = Lease("coordinator")
    lease.acquire()
    with statements() as made:
        applying.record(outcomes, lease)
    assert len(made) <= 5, made
    assert state(batch) == ("running", 1, 500, 0, 0, 1)


def test_a_stale_batch_that_is_saved_changes_no_counter():
    batch = open_batch(3)
    stale = Batch.objects.get()
    applying.record([outcome_of(job) for job in claim(batch)])
    tasks.write_metadata(stale)
    assert state(batch) == ("succeeded", 0, 3, 0, 0, 0)
    assert batch.metadata == {"x": 1}


def test_a_failed_copy_raises_the_error_class_of_django():
    batch = open_batch()
    with pytest.raises(Error), transaction.atomic():
        inserting.jobs([NewJob(batch.pk, "f", "[]", "q", 1, 1, "0", "[]", batch.created_at, None)])


@pytest.mark.postgresql
def test_the_coordinator_does_not_wait_for_locks_of_user_code():
    """A cancel in an open transaction holds its batch and its rows; without SKIP LOCKED the coordinator waits."""
    late = open_batch(max_attempts=2, backoff=1)
    applying.record([outcome_of(job, Kind.FAILED) for job in claim(late)])
    due = open_batch(max_attempts=2, backoff=1)
    applying.record([outcome_of(job, Kind.FAILED) for job in claim(due)])
    ended = open_batch(1)
    applying.record([outcome_of(job) for job in claim(ended)])
    database.jobs().filter(status="scheduled").update(due_at=late.created_at)
    locked = ended.callbacks.first()
    with open_elsewhere(lambda: (late.cancel(), locked.cancel())):
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '2s'")
        assert len(claiming.promote_due(timezone.now)) == 1
        claimed = {job.id for job in claiming.claim_callbacks(10, timezone.now)}
        assert len(claimed & set(ended.callbacks.values_list("pk", flat=True))) == 2 and locked.pk not in claimed
        assert cancelling.cancel_next_chunk(late.pk, skip_locked=True) == 0
        assert repairing.end_batches() == 0


@pytest.mark.postgresql
def test_a_locked_batch_delays_no_other():
    locked, free = open_batch(), open_batch()
    outcomes = [outcome_of(job) for job in claim()]
    with open_elsewhere(lambda: locked.enqueue(tasks.ok)):
        begun = time.monotonic()
        recorded = applying.record(outcomes)
        waited = time.monotonic() - begun
        assert state(free)[0] == "succeeded"
        assert [outcome.batch_id for outcome in recorded.postponed] == [locked.pk]
    assert waited < 5  # not for the lock, which was never released
    applying.record(recorded.postponed)
    assert state(locked) == ("running", 1, 1, 0, 0, 0)


def test_an_outcome_is_the_same_after_dumps_and_loads():
    batch = open_batch()
    (claimed,) = claim(batch)
    now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    for outcome in (
        outcome_of(claimed, result=json.dumps("å\ud800 x"), started_at=now, finished_at=now, worker="w w"),
        outcome_of(claimed, result=None, started_at=now, finished_at=now),
        outcome_of(claimed, Kind.FAILED, traceback="tb", is_final=True, was_logged=True),
        outcome_of(claimed, Kind.RETRY, retry_max=3, retry_after=1.5),
    ):
        assert Outcome.loads(outcome.dumps()) == outcome


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "null", '{"kind":"x"}', '{"kind":"failed","job_id":"x","dispatch":1,"batch_id":"y"}', b"\xff",
        "+", "+a 1 b 0 1.0 2.0 null\nw", f"+{'0' * 32} 1 {'0' * 32} 0 1e300 2.0 null\nw",
    ],
)  # fmt: skip
def test_text_that_is_not_an_outcome_raises_value_error(text):
    with pytest.raises(ValueError):
        Outcome.loads(text)


NASTY = ['a"b', "a\\b", "a,b", "{a}", "NULL", "", " ", "a\nb", "å\U0001f600", "'; DROP TABLE x; --", "%s"]


def test_text_is_stored_unchanged():
    batch = open_batch(len(NASTY))
    applying.record(
        [
            outcome_of(job, Kind.FAILED, error=text, traceback=text)
            for job, text in zip(claim(batch), NASTY, strict=True)
        ]
    )
    assert [(job.error, job.traceback) for job in batch.jobs.all()] == [(text, text) for text in NASTY]


def test_a_callback_that_cannot_be_imported_yet_is_retried_even_after_a_cancel():
    with Batch.open() as batch:
        batch.on_finish(tasks.ok_callback)
        batch.enqueue(tasks.ok)
    batch.cancel()
    applying.record([outcome_of(claim(callbacks=True)[0], Kind.MISSING)])
    callback = batch.callbacks.get()
    assert callback.status == "scheduled" and (callback.due_at - timezone.now()).total_seconds() > 20
