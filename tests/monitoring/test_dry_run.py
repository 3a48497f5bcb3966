"""`manage.py batches reconcile`: repairs, or with `--dry-run` shows what the coordinator would repair."""

from datetime import timedelta

import pytest
from django.utils import timezone

from django_batches import Batch, database
from django_batches.coordinator import reconcile
from django_batches.coordinator.loop import Coordinator
from django_batches.models import BatchJob, Lease
from django_batches.monitoring.dry_run import planned_repairs
from django_batches.transitions import applying, deleting, repairing
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..admin_data import batch_of
from ..commanding import batches
from ..road import claim, outcome_of
from .test_diagnosis import at

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """The second look follows at once."""
    monkeypatch.setattr(reconcile, "SECOND_LOOK", 0.0)


def fill(count=1, **options):
    with Batch.open(**options) as batch:
        batch.map(tasks.ok, range(count))
    return batch


def everything():
    """All rows."""
    return [list(model.objects.order_by("pk").values()) for model in (Batch, BatchJob, Lease)]


def found(redis):
    return [(repair.code, repair.batch_id) for repair in planned_repairs(redis)]


def add_drift(batch):
    database.batches().filter(pk=batch.pk).update(pending=batch.total - 1, succeeded=1)


class TestDryRun:
    def test_finds_nothing_if_rows_and_redis_agree(self, road, redis):
        fill(5)
        road.dispatch()
        road.executor.step()
        assert found(redis) == []
        result = batches("reconcile", "--dry-run")
        assert (result.code, result.out) == (0, "Counters, rows and Redis agree.\n")

    def test_lists_jobs_missing_from_redis_and_what_would_happen_to_them(self, road, redis):
        batch = fill(2)
        road.dispatch()
        redis.flushdb()
        before = everything()
        result = batches("reconcile", "--dry-run")
        assert result.code == 1 and everything() == before and redis.keys("*") == []
        assert "job 1 (tests.tasks.ok), queued: Redis had no trace of it. It would be dispatched again." in result.out
        assert "Nothing was changed." in result.out
        repairs = batches("reconcile", "--dry-run", "--json").json
        assert {(line["code"], line["batch_id"]) for line in repairs} == {("lost", str(batch.pk))} and len(repairs) == 2

    def test_lists_a_job_whose_lease_expired(self, road, redis, keys):
        fill(1)
        road.dispatch()
        taken = road.executor._turn(True)
        redis.delete(keys.execution(taken.rq_id, 1))
        assert (
            "Its worker was lost while it ran. It would be dispatched again." in batches("reconcile", "--dry-run").out
        )

    def test_a_third_loss_would_fail_the_job(self, road, redis, keys):
        fill(1)
        road.dispatch()
        taken = road.executor._turn(True)
        redis.delete(keys.execution(taken.rq_id, 1))
        database.jobs().update(losses=2)
        assert "It would fail for good." in batches("reconcile", "--dry-run").out

    def test_a_job_whose_outcome_is_in_the_stream_is_not_lost(self, road, redis):
        fill(3)
        road.dispatch()
        road.work()
        assert redis.xlen("batches:tests:outcomes") == 3 and found(redis) == []

    def test_takes_a_second_look_at_jobs_without_a_trace(self, road, redis, monkeypatch):
        monkeypatch.setattr(reconcile, "SECOND_LOOK", 12.0)
        batch = fill(1)
        road.dispatch()
        (rq_id,) = redis.lrange("rq:queue:default", 0, -1)
        redis.lpop("rq:queue:default")
        pauses = []

        def meanwhile(seconds):
            pauses.append(seconds)
            redis.rpush("rq:queue:default", rq_id)

        monkeypatch.setattr("django_batches.monitoring.dry_run.time.sleep", meanwhile)
        result = batches("reconcile", "--dry-run")
        assert result.code == 0 and pauses == [12.0] and "Looking again in 12 s" in result.err
        assert batch.jobs.get().status == "queued"

    def test_predicts_what_the_coordinator_then_does(self, road, redis):
        batch = fill(4)
        road.dispatch()
        redis.flushdb()
        planned = {repair.job_id for repair in planned_repairs(redis)}
        road.reconciler.look()
        road.reconciler.look()
        road.reconciler.act()
        assert planned == set(batch.jobs.filter(status="created").values_list("pk", flat=True)) and len(planned) == 4

    def test_lists_drift_batches_that_could_end_and_interrupted_steps(self, redis):
        drifting, ending = batch_of(created=3), batch_of(succeeded=2, finished_at=None, status="running")
        cancelled = batch_of(created=1, cancelled_at=timezone.now())
        retried = batch_of(failed=1, created=1, retry_position=0)
        long_ago = timezone.now() - timedelta(hours=2)
        abandoned = batch_of(created=1, status="open", sealed_at=None, grown_at=long_ago)
        deleted = batch_of(succeeded=1)
        deleting.begin_deletion(deleted.pk)
        add_drift(drifting)
        before = everything()
        assert set(found(redis)) == {
            ("counters", drifting.pk), ("end", ending.pk), ("cancel", cancelled.pk), ("retry", retried.pk),
            ("abandoned", abandoned.pk), ("delete", deleted.pk),
        }  # fmt: skip
        assert "pending by +1, succeeded by -1" in batches("reconcile", "--dry-run").out
        assert everything() == before

    def test_redis_is_down(self, settings):
        at("redis://127.0.0.1:1/1", settings)
        result = batches("reconcile", "--dry-run")
        assert result.code == 1 and "Redis does not answer" in result.err


class TestRepair:
    def test_repairs_counters_and_ends_batches_that_can_end(self, redis, caplog):
        drifting, ending = batch_of(created=3), batch_of(succeeded=2, finished_at=None, status="running")
        add_drift(drifting)
        result = batches("reconcile")
        drifting.refresh_from_db(), ending.refresh_from_db()
        assert (drifting.pending, drifting.succeeded, ending.status) == (3, 0, "succeeded")
        assert "Repaired the counters of 1 batch." in result.out and "Ended 1 batch." in result.out
        assert "differ from its rows" in caplog.text

    def test_without_a_batchworker_it_says_so_and_exits_with_1(self, redis):
        result = batches("reconcile")
        assert result.code == 1 and "there is no active coordinator" in result.err and "batchworker" in result.err
        assert batches("reconcile", "--json").json == {"repaired": [], "ended": 0, "asked": None}

    def test_makes_the_coordinator_compare_now(self, redis):
        coordinator = Coordinator("loop", lambda: True)
        assert coordinator._lease.acquire()
        coordinator._begin()
        batch = fill(2)
        coordinator.turn()  # its first comparison is over, the next one is due in 15 s
        redis.delete("rq:queue:default")
        result = batches("reconcile")
        assert result.code == 0 and "The active coordinator, loop, will compare" in result.out
        for _ in range(3):
            coordinator._poll.soon()
            coordinator.turn()
        assert sorted(batch.jobs.values_list("dispatch", flat=True)) == [2, 2]

    def test_without_the_request_the_coordinator_does_not_compare(self, redis):
        coordinator = Coordinator("loop", lambda: True)
        assert coordinator._lease.acquire()
        coordinator._begin()
        batch = fill(2)
        coordinator.turn()
        redis.delete("rq:queue:default")
        for _ in range(3):
            coordinator._poll.soon()
            coordinator.turn()
        assert sorted(batch.jobs.values_list("dispatch", flat=True)) == [1, 1]

    def test_repairing_twice_calls_the_callbacks_once(self, redis):
        with Batch.open() as batch:
            batch.on_finish(tasks.ok_callback)
            batch.map(tasks.ok, range(2))
        applying.record([outcome_of(job, Kind.SUCCEEDED) for job in claim(batch)])
        batches("reconcile"), batches("reconcile")
        assert batch.callbacks.count() == 1


class TestDrift:
    """Counters that differ from their rows are a bug of ours. It must not affect other batches."""

    def test_does_not_stop_the_dispatch_of_other_batches(self, redis, caplog):
        coordinator = Coordinator("loop", lambda: True)
        assert coordinator._lease.acquire()
        coordinator._begin()
        drifting, other = batch_of(created=2), fill(2)
        database.batches().filter(pk=drifting.pk).update(pending=1, succeeded=1)
        for _ in range(3):
            coordinator._poll.soon()
            coordinator.turn()
        assert {job.status for batch in (drifting, other) for job in batch.jobs.all()} == {"queued"}
        assert repairing.drift(drifting.pk) == {} and "differ from its rows" in caplog.text

    def test_does_not_fail_a_job_that_succeeded(self, redis):
        batch = fill(3)
        claimed = claim(batch)
        database.batches().filter(pk=batch.pk).update(pending=0, succeeded=3, in_flight=0)
        applying.record([outcome_of(job) for job in claimed])
        batch.refresh_from_db()
        assert (batch.status, batch.succeeded) == ("succeeded", 3) and repairing.drift(batch.pk) == {}
