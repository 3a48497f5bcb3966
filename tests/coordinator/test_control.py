"""The options that control a running batch: concurrency, max_failures, key, no_retry, deadline, run_after."""

import threading
from datetime import datetime, timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from django_batches import Batch, database
from django_batches.exceptions import BatchCancelled, BatchExists
from django_batches.models import BatchJob
from django_batches.monitoring.progress import snapshot
from django_batches.transitions import applying, cancelling, claiming, repairing
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..processes import wait_until
from ..road import claim, outcome_of

pytestmark = pytest.mark.django_db(transaction=True)


def state(batch):
    batch.refresh_from_db()
    assert repairing.drift(batch.pk) == {}
    return (batch.status, batch.pending, batch.succeeded, batch.failed, batch.cancelled)


def fill(count, **options):
    with Batch.open(**options) as batch:
        for event in ("success", "failure", "finish"):
            getattr(batch, f"on_{event}")(tasks.told, "path")
        batch.map(tasks.ok, range(count))
    return batch


@pytest.mark.parametrize(
    "given",
    [
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"max_failures": -1},
        {"max_failures": 0.05},
        {"key": ""},
        {"key": 7},
        {"deadline": -1},
        {"deadline": 0},
    ],
)
def test_an_invalid_limit_is_refused_before_anything_is_written(given):
    with pytest.raises(ValueError, match=f"^{next(iter(given))}:"):
        Batch.open(**given)
    assert not Batch.objects.exists()


class TestConcurrency:
    def test_no_more_jobs_than_allowed_are_in_rq(self):
        batch, free = fill(10, concurrency=3), fill(10)
        claimed = claim(batch)
        assert len(claimed) == 3
        assert free.jobs.filter(status="queued").count() == 10
        assert claim(batch) == []
        applying.record([outcome_of(job) for job in claimed[:2]])
        assert len(claim(batch)) == 2
        batch.refresh_from_db()
        assert batch.in_flight == 3

    def test_callbacks_and_scheduled_jobs_do_not_count(self):
        batch = fill(2, concurrency=1, max_attempts=2, backoff=3600)
        (first,) = claim(batch)
        applying.record([outcome_of(first, Kind.FAILED)])
        assert batch.jobs.get(pk=first.id).status == "scheduled"
        assert len(claim(batch)) == 1

    def test_a_worker_reaches_the_limit_and_does_not_exceed_it(self, start_worker, ledger):
        start_worker("--workers", 8)
        with Batch.open(concurrency=3) as batch:
            for _ in range(60):
                batch.enqueue(tasks.begin_and_end, ledger.path, 0.1)
        assert batch.wait(60)
        at_once = most = 0
        for line in ledger.lines:
            at_once += 1 if line == "begin" else -1
            most = max(most, at_once)
        assert most == 3


class TestMaxFailures:
    def test_one_failure_too_many_cancels_the_rest_and_fails_the_batch(self):
        batch = fill(10, max_failures=2)
        claimed = claim(batch)
        applying.record([outcome_of(job, Kind.VANISHED) for job in claimed[5:]])
        applying.record([outcome_of(job, Kind.FAILED) for job in claimed[:2]])
        assert state(batch) == ("running", 8, 0, 2, 0)
        recorded = applying.record([outcome_of(claimed[2], Kind.FAILED)])
        assert recorded.failed_too_often == [batch.pk]
        assert cancelling.batches_on_hold() == {batch.pk}
        assert cancelling.unfinished_cancels() == [batch.pk]
        cancelling.cancel_next_chunk(batch.pk)
        assert state(batch) == ("running", 2, 0, 3, 5)
        applying.record([outcome_of(claimed[3]), outcome_of(claimed[4], Kind.ON_HOLD)])
        assert state(batch) == ("failed", 0, 1, 3, 6)
        assert batch.reason == "More than 2 jobs failed (max_failures)."
        assert sorted(batch.callbacks.values_list("event", flat=True)) == ["failure", "finish"]

    @pytest.mark.parametrize("then_cancelled", [False, True])
    def test_a_retry_of_one_job_does_not_retry_the_cancelled_jobs(self, then_cancelled):
        batch = fill(3, max_failures=0)
        claimed = claim(batch)
        applying.record([outcome_of(claimed[0], Kind.FAILED)])
        applying.record([outcome_of(job, Kind.ON_HOLD) for job in claimed[1:]])
        batch.refresh_from_db()
        assert batch.retry_failed() == 3  # a whole round, after which the next is like the first
        claimed = claim(batch)
        applying.record([outcome_of(claimed[0], Kind.FAILED)])
        applying.record([outcome_of(job, Kind.ON_HOLD) for job in claimed[1:]])
        batch.refresh_from_db()
        assert batch.first_failure.retry()
        if then_cancelled:
            batch.cancel()
            applying.record([outcome_of(job) for job in claim(batch)])
            assert state(batch)[0] == "cancelled" and batch.retry_failed() == 0
            return
        applying.record([outcome_of(job) for job in claim(batch)])
        assert state(batch) == ("failed", 0, 1, 0, 2)
        assert batch.retry_failed() == 2
        applying.record([outcome_of(job) for job in claim(batch)])
        assert state(batch) == ("succeeded", 0, 3, 0, 0)

    def test_a_retry_includes_the_cancelled_jobs(self):
        batch = fill(4, max_failures=0)
        claimed = claim(batch)
        applying.record([outcome_of(claimed[0], Kind.FAILED)])
        applying.record([outcome_of(job, Kind.ON_HOLD) for job in claimed[1:]])
        assert state(batch) == ("failed", 0, 0, 1, 3)
        assert batch.retry_failed() == 4
        assert state(batch) == ("running", 4, 0, 0, 0)
        assert batch.reason == ""
        applying.record([outcome_of(job) for job in claim(batch)])
        assert state(batch) == ("succeeded", 0, 4, 0, 0)

    def test_a_retry_does_not_count_failures_that_it_has_not_retried_yet(self, monkeypatch):
        batch = fill(4, max_failures=0)
        applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
        monkeypatch.setattr(database, "CHUNK", 2)
        assert batch.retry_failed() == 4
        assert state(batch) == ("running", 4, 0, 0, 0)
        assert not batch.is_cancelled

    def test_one_of_several_failed_jobs_can_be_retried(self):
        batch = fill(3, max_failures=0)
        applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
        assert [job.retry() for job in batch.jobs.all()[:2]] == [True, True]
        first, second = claim(batch)
        applying.record([outcome_of(first)])
        assert state(batch) == ("running", 1, 1, 1, 0)
        applying.record([outcome_of(second)])
        assert state(batch) == ("failed", 0, 2, 1, 0)

    def test_an_open_batch_whose_jobs_have_all_failed_accepts_no_more(self):
        with pytest.raises(BatchCancelled, match="max_failures"), Batch.open(max_failures=1) as batch:
            batch.map(tasks.ok, range(2))
            batch.block.flush()
            applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
            assert state(batch) == ("failed", 0, 0, 2, 0)
            batch.enqueue(tasks.ok)
        assert state(batch) == ("failed", 0, 0, 2, 0)

    def test_the_last_job_can_be_the_failure_that_is_one_too_many(self):
        batch = fill(2, max_failures=1)
        applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
        assert state(batch) == ("failed", 0, 0, 2, 0)
        assert batch.reason == ""

    def test_a_worker_starts_no_more_jobs(self, start_worker, ledger):
        with Batch.open(max_failures=3) as batch:
            batch.on_finish(tasks.told, ledger.path)
            batch.map(tasks.raises, ["no"] * 6000)
        start_worker("--workers", 2)  # not before: it might give up a batch that is still being filled
        assert batch.wait(60)
        assert (batch.status, batch.failed + batch.cancelled) == ("failed", 6000)
        # What was in RQ when the fourth failed may have run.
        assert 4 <= batch.failed <= claiming.WINDOW + 3
        assert len(ledger.lines) == 1


class TestCancelAndMaxFailures:
    def test_a_cancelled_batch_stays_cancelled_if_its_running_jobs_fail(self):
        batch = fill(3, max_failures=0)
        jobs = claim(batch)[:2]
        batch.cancel("enough")
        applying.record([outcome_of(job, Kind.FAILED) for job in jobs])
        drained = claim(batch)
        assert not drained
        batch.refresh_from_db()
        assert (batch.reason, batch.failed) == ("enough", 2)
        applying.record([outcome_of(job, Kind.ON_HOLD) for job in BatchJob.objects.filter(status="queued")])
        assert state(batch)[0] == "cancelled"


class TestKey:
    def test_a_second_batch_with_the_key_of_an_unfinished_one_is_refused(self):
        batch = fill(1, key="import-7")
        with pytest.raises(BatchExists, match="'import-7' has not ended yet"), Batch.open(key="import-7"):
            raise AssertionError("never entered")
        fill(1, key="import-8")
        applying.record([outcome_of(job) for job in claim(batch)])
        assert fill(1, key="import-7").pk != batch.pk

    def test_a_refusal_inside_a_transaction_leaves_it_usable(self):
        fill(1, key="once")
        with transaction.atomic():
            with pytest.raises(BatchExists):
                Batch.open(key="once").__enter__()
            fill(1, key="other")
        assert Batch.objects.count() == 2

    def test_a_retry_beside_an_unfinished_batch_with_the_key_changes_nothing(self):
        batch = fill(1, key="nightly")
        applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
        fill(1, key="nightly")
        with pytest.raises(BatchExists, match="retry once it has"):
            batch.retry_failed()
        with pytest.raises(BatchExists):
            batch.jobs.get().retry()
        assert state(batch) == ("failed", 0, 0, 1, 0)

    @pytest.mark.postgresql
    def test_of_many_concurrent_batches_with_a_key_one_is_opened(self):
        barrier, opened = threading.Barrier(8), []

        def work():
            try:
                barrier.wait(10)
                opened.append(fill(1, key="cron").pk)
            except BatchExists:
                pass
            finally:
                connection.close()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == Batch.objects.count() == 1


class TestNoRetry:
    def test_an_excluded_exception_is_final(self, road):
        with Batch.open(max_attempts=5, no_retry=ValueError) as batch:
            batch.enqueue(tasks.boom)
            batch.using(no_retry=()).enqueue(tasks.boom)
            batch.using(no_retry=[LookupError]).enqueue(tasks.key_error)
        road.run()
        assert list(BatchJob.objects.values_list("attempts", flat=True)) == [1, 5, 1]
        assert state(batch) == ("failed", 0, 0, 3, 0)


class TestDeadline:
    def late(self, batch):
        Batch.objects.filter(pk=batch.pk).update(deadline_at=timezone.now() - timedelta(minutes=1))
        cancelling.mark_overdue(timezone.now())
        batch.refresh_from_db()

    def test_a_late_batch_is_marked_and_its_failure_callback_is_called_once(self):
        with Batch.open(deadline=timedelta(hours=1)) as batch:
            batch.on_failure(tasks.ok_callback)
            batch.map(tasks.ok, range(2))
        cancelling.mark_overdue(timezone.now())
        batch.refresh_from_db()
        assert (batch.is_overdue, batch.deadline, batch.callbacks.count()) == (False, 3600, 0)
        self.late(batch)
        cancelling.mark_overdue(timezone.now())
        assert (batch.is_overdue, batch.status, batch.callbacks.get().event) == (True, "running", "failure")
        jobs = claim(batch)
        applying.record([outcome_of(jobs[0], Kind.FAILED), outcome_of(jobs[1])])
        assert batch.callbacks.count() == 1

    def test_a_batch_that_ended_in_time_is_not_marked(self):
        batch = fill(1, deadline=60)
        applying.record([outcome_of(job) for job in claim(batch)])
        Batch.objects.filter(pk=batch.pk).update(finished_at=timezone.now() - timedelta(minutes=2))
        self.late(batch)
        assert (batch.status, batch.is_overdue) == ("succeeded", False)

    def test_a_batch_that_ended_late_is_overdue_even_without_a_check_before_its_end(self):
        batch = fill(1, deadline=60)
        applying.record([outcome_of(job) for job in claim(batch)])
        self.late(batch)
        assert (batch.status, batch.overdue_at, batch.is_overdue) == ("succeeded", None, True)

    def test_a_late_batch_is_overdue_before_the_coordinator_marks_it(self):
        batch = fill(1, deadline=60)
        Batch.objects.filter(pk=batch.pk).update(deadline_at=timezone.now() - timedelta(minutes=1))
        batch.refresh_from_db()
        assert (batch.overdue_at, batch.is_overdue) == (None, True)
        assert snapshot(batch)["is_overdue"]

    def test_an_overdue_batch_succeeds_when_its_jobs_do(self):
        with Batch.open(deadline=60) as batch:
            batch.on_success(tasks.ok_callback)
            batch.enqueue(tasks.ok)
        self.late(batch)
        applying.record([outcome_of(job) for job in claim(batch)])
        batch.refresh_from_db()
        assert (batch.status, batch.is_overdue) == ("succeeded", True)

    def test_a_retry_restarts_the_deadline(self):
        batch = fill(1, deadline=60)
        self.late(batch)
        applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
        batch.retry_failed()
        assert not batch.is_overdue
        assert timedelta(seconds=50) < batch.deadline_at - timezone.now() <= timedelta(seconds=60)

    def test_the_coordinator_checks_the_deadlines(self, start_worker):
        with Batch.open(deadline=1) as batch:
            batch.on_failure(tasks.ok_callback)
            batch.using(run_after=600).enqueue(tasks.ok)
        start_worker("--workers", "1")
        wait_until(lambda: batch.callbacks.filter(status="succeeded").exists())
        batch.refresh_from_db()
        assert batch.is_overdue


class TestRunAfter:
    def test_a_job_waits_for_its_time(self, road):
        with Batch.open() as batch:
            job = batch.using(run_after=timedelta(hours=1)).enqueue(tasks.ok)
            batch.enqueue(tasks.ok)
        assert job.status == "scheduled"
        assert road.run() == 1
        row = batch.jobs.get(pk=job.pk)
        assert (row.status, row.due_at) == ("scheduled", job.due_at)
        BatchJob.objects.filter(pk=job.pk).update(due_at=timezone.now())
        assert road.run() == 1
        batch.refresh_from_db()
        assert batch.status == "succeeded"

    def test_run_after_accepts_a_time_or_a_delay_for_one_job_and_for_many(self):
        moment = timezone.now() + timedelta(days=1)
        with Batch.open() as batch:
            batch.using(run_after=moment).map(tasks.ok, range(3))
            batch.using(run_after=90).using(queue="other").enqueue(tasks.ok)
        due = list(batch.jobs.order_by("position").values_list("due_at", "queue"))
        assert due[:3] == [(moment, "default")] * 3
        assert timedelta(seconds=80) < due[3][0] - timezone.now() <= timedelta(seconds=90) and due[3][1] == "other"

    def test_a_callback_waits_after_its_event(self, road):
        with Batch.open() as batch:
            batch.using(run_after=60).on_success(tasks.ok_callback)
            batch.using(run_after=timezone.now() - timedelta(days=1)).on_finish(tasks.ok_callback)
        assert road.run() == 1
        waiting = batch.callbacks.get(event="success")
        assert waiting.status == "scheduled" and waiting.due_at > timezone.now() + timedelta(seconds=40)

    def test_a_scheduled_job_can_be_cancelled(self):
        with Batch.open() as batch:
            batch.using(run_after=3600).enqueue(tasks.ok)
        assert batch.jobs.get().cancel()
        batch.refresh_from_db()
        assert batch.status == "failed"

    @pytest.mark.parametrize("wrong", [-1, "soon", datetime(2030, 1, 1), True])
    def test_an_invalid_time_is_refused(self, wrong):
        with pytest.raises((TypeError, ValueError), match="run_after"), Batch.open() as batch:
            batch.using(run_after=wrong)
