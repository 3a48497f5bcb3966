"""The coordinator: one is active at a time, and it recovers what Redis loses."""

import json
import os
from datetime import timedelta

import pytest
from django.conf import settings
from django.test import override_settings
from django.utils import timezone
from redis.exceptions import RedisError
from rq import Queue
from rq.job import Job, JobStatus

from django_batches import Batch, database
from django_batches.coordinator import loop, reconcile, record
from django_batches.coordinator.dispatch import FLOOR
from django_batches.coordinator.lease import Lease, LeaseLost
from django_batches.coordinator.loop import Coordinator, Turn
from django_batches.coordinator.suspects import Suspects
from django_batches.coordinator.timer import Every
from django_batches.models import BatchJob, Lease as LeaseRow
from django_batches.transitions import applying, frontier, job_updates, repairing
from django_batches.transitions.applying import Recorded
from django_batches.transport.client import Keys
from django_batches.transport.outcomes import Kind
from django_batches.worker.executor import Executor
from django_batches.worker.options import Options
from django_batches.worker.slots import SlotTable

from .. import tasks
from ..road import Road, claim, open_elsewhere, outcome_of, statements

pytestmark = pytest.mark.django_db(transaction=True)


def fill(count=1, **options):
    with Batch.open(**options) as batch:
        batch.on_finish(tasks.ok_callback)
        batch.map(tasks.ok, range(count))
    return batch


def assert_books_are_right(batch):
    batch.refresh_from_db()
    assert repairing.drift(batch.pk) == {}


def reconciled(road):
    """Compares twice, at the required interval, and applies the verdicts."""
    road.reconciler.look()
    for rq_id in road.reconciler.suspects.since:
        road.reconciler.suspects.since[rq_id] -= reconcile.SECOND_LOOK
    road.reconciler.look()
    while road.record():
        pass
    return road.reconciler.act()


def suspected(redis):
    """The suspects in Redis, and since when by its clock."""
    found = {field.decode(): value for field, value in redis.hgetall(Keys().suspects).items()}
    found.pop("server", None)
    return {rq_id: float(since) for rq_id, since in found.items()}


class TestLease:
    def test_one_coordinator_has_the_lease_at_a_time(self):
        first, second = Lease("first"), Lease("second")
        assert first.acquire() and not second.acquire()
        assert first() <= timezone.now() + timedelta(seconds=1)
        first.release()
        assert second.acquire() and second.token > first.token

    def test_a_standby_with_another_namespace_logs_it_once(self, caplog):
        first, second = Lease("first"), Lease("second")
        assert first.acquire() and not second.acquire()
        assert caplog.messages == []
        with override_settings(DJANGO_BATCHES={**settings.DJANGO_BATCHES, "NAMESPACE": "elsewhere"}):
            third = Lease("third")
            assert not third.acquire() and not third.acquire()
        (message,) = caplog.messages
        assert "this process uses elsewhere" in message and 'Set DJANGO_BATCHES["NAMESPACE"]' in message

    def test_a_coordinator_that_was_frozen_finds_another_token(self):
        first, second = Lease("first"), Lease("second")
        first.acquire()
        LeaseRow.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        assert first()  # no other coordinator has taken it
        LeaseRow.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        assert second.acquire()
        with pytest.raises(LeaseLost), database.atomic():
            first()

    def test_a_new_database_with_an_old_redis_continues_from_its_token(self, redis, keys):
        redis.set(keys.fence, 300)
        coordinator = Coordinator("new", lambda: True)
        assert coordinator._lease.acquire(coordinator._newest_token())
        coordinator._begin()
        assert coordinator._lease.token == 301 and redis.get(keys.fence) == b"301"

    def test_a_coordinator_without_its_lease_row_stops(self):
        lease = Lease("first")
        lease.acquire()
        LeaseRow.objects.all().delete()
        with pytest.raises(LeaseLost):
            lease()


class TestTwoCoordinators:
    def test_outcomes_read_by_both_are_counted_once(self, road):
        batch = fill(10)
        road.dispatch()
        road.work()
        entries, _ = road.recorder.read(1)
        LeaseRow.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        other = Road("other")
        other.record()
        with pytest.raises(LeaseLost):
            road.recorder.record(entries)
        other.run()
        assert_books_are_right(batch)
        assert (batch.status, batch.succeeded, batch.callbacks.count()) == ("succeeded", 10, 1)
        other.close()

    def test_outcomes_that_were_applied_but_not_deleted_are_counted_once(self, road, monkeypatch):
        batch = fill(4)
        road.dispatch()
        road.work()
        monkeypatch.setattr(road.recorder._redis, "xdel", lambda *args: 0)
        road.record()
        road.record()
        monkeypatch.undo()
        road.run()
        assert_books_are_right(batch)
        assert (batch.status, batch.succeeded) == ("succeeded", 4)

    def test_a_standby_takes_over_when_the_active_coordinator_exits(self, road):
        standby = Coordinator("standby", lambda: True)
        assert not standby._lease.acquire()
        road.lease.release()
        assert standby._lease.acquire()


class TestReconciler:
    def test_it_finds_nothing_if_all_is_well(self, road):
        batch = fill(6)
        road.dispatch()
        road.executor.step()
        assert road.reconciler.look() == 0
        road.run()
        assert_books_are_right(batch)
        assert batch.jobs.filter(dispatch=1).count() == 6

    def test_finished_jobs_do_not_run_again_while_outcomes_wait(self, road, ledger, monkeypatch):
        with Batch.open() as batch:
            batch.map(tasks.append_item, range(5), ledger.path)
        road.run()
        with Batch.open() as batch:
            batch.map(tasks.append_item, range(4), ledger.path)
        road.dispatch()
        road.work()  # the outcomes wait in the stream, nothing of the jobs is left in Redis
        monkeypatch.setattr(reconcile, "SECOND_LOOK", 0.0)
        assert road.reconciler.look() == 4
        assert road.reconciler.act() == 0  # not before the stream is applied
        road.record()
        assert road.reconciler.act() == 4  # and then they change nothing
        road.run()
        assert_books_are_right(batch)
        assert len(ledger.lines) == 9 and batch.jobs.filter(dispatch=1).count() == 4

    def test_a_lost_connection_does_not_delay_the_second_look(self, road, redis):
        fill(1)
        road.dispatch()
        road.lease.release()
        redis.flushall()
        coordinator = Coordinator("active_coordinator", lambda: True)
        assert coordinator._lease.acquire()
        coordinator._begin()
        assert coordinator._reconciler.look() == 0
        (since,) = coordinator._suspects.since.values()
        coordinator._begin()  # as after an error
        assert len(coordinator._suspects.since) == 1
        coordinator._suspects.since = dict.fromkeys(coordinator._suspects.since, since - reconcile.SECOND_LOOK)
        assert coordinator._reconciler.look() == 1

    def test_coordinators_hand_over_their_suspects(self, road, redis, monkeypatch):
        """Each is active for one comparison only; a lost job is recovered nevertheless."""
        batch = fill(1)
        road.dispatch()
        redis.lpop("rq:queue:default")
        road.lease.release()
        monkeypatch.setattr(loop.Coordinator, "_wait", lambda coordinator, seconds: None)

        def keep_for_a_turn(number):
            answers = iter([False, False])
            Coordinator(f"active_coordinator {number}", lambda: next(answers, True)).run()

        keep_for_a_turn(1)
        since = {run: moment - 5 for run, moment in suspected(redis).items()}
        redis.hset(Keys().suspects, mapping=since)
        keep_for_a_turn(2)
        assert suspected(redis) == pytest.approx(since, abs=1) and batch.jobs.get().dispatch == 1
        redis.hset(Keys().suspects, mapping={run: moment - reconcile.SECOND_LOOK for run, moment in since.items()})
        keep_for_a_turn(3)
        keep_for_a_turn(4)
        assert batch.jobs.get().dispatch == 2 and suspected(redis) == {}

    def test_suspects_from_before_a_restart_of_redis_are_ignored(self, road, redis):
        fill(1)
        road.dispatch()
        redis.lpop("rq:queue:default")
        road.reconciler.look()
        suspects = road.reconciler.suspects
        suspects.since = {run: moment - 5 for run, moment in suspects.since.items()}
        suspects.hand_over(redis)
        redis.hset(Keys().suspects, "of somebody else", "no time")
        known, other = Suspects(), Suspects()
        known.take_over(redis)
        assert known.since == pytest.approx(suspects.since, abs=1)
        redis.hset(Keys().suspects, "server", "another one")
        other.take_over(redis)
        assert other.since == {}
        suspects.since = {}
        suspects.hand_over(redis)
        known.take_over(redis)
        assert known.since == {}, "another coordinator has found the job meanwhile"

    @pytest.mark.postgresql
    def test_a_locked_batch_does_not_delay_the_recovery_of_others(self, road, redis, monkeypatch):
        monkeypatch.setattr(reconcile, "SECOND_LOOK", 0.0)
        locked, lost = fill(1), fill(1)
        road.dispatch()
        for job in lost.jobs.all():
            redis.delete(road.recorder._keys.job(road.recorder._keys.rq_id(job.pk, 1)))
        road.work()  # the outcome of the other one
        with open_elsewhere(lambda: database.lock_batches([locked.pk])):
            assert road.reconciler.look() == 2
            for _ in range(2):
                road.record()
                road.recorder.rewind()
                road.reconciler.act()
            lost.refresh_from_db(), locked.refresh_from_db()
            assert (lost.in_flight, lost.jobs.get().status) == (0, "created")
            assert (locked.in_flight, locked.jobs.get().status) == (1, "queued")
        road.run()
        for batch in (locked, lost):
            assert_books_are_right(batch)
            assert (batch.status, batch.jobs.get().losses) == ("succeeded", 0)
        assert (locked.jobs.get().dispatch, lost.jobs.get().dispatch) == (1, 2)

    def test_a_job_that_ends_during_the_comparison_does_not_run_again(self, road, ledger, monkeypatch):
        with Batch.open() as batch:
            batch.map(tasks.append_item, range(3), ledger.path)
        road.dispatch()
        waiting = road.reconciler._waiting

        def and_then_they_end(queues):
            found = waiting(queues)
            road.work()
            return found - found  # the worst moment: seen in no list, and ended before the hashes are read

        monkeypatch.setattr(reconcile, "SECOND_LOOK", 0.0)
        monkeypatch.setattr(road.reconciler, "_waiting", and_then_they_end)
        assert road.reconciler.look() == 3
        assert road.reconciler.act() == 0
        road.record()
        road.reconciler.act()
        road.run()
        assert_books_are_right(batch)
        assert len(ledger.lines) == 3

    def test_jobs_wiped_from_redis_are_dispatched_again_without_limit(self, road, redis, caplog):
        batch = fill(3)
        for _ in range(5):
            road.dispatch()
            redis.flushdb()
            assert reconciled(road) == 3
            assert {job.error for job in batch.jobs.all()} == {"Redis had no trace of it."}
        logged = [message for message in caplog.messages if "was not started" in message]
        assert len(logged) == 15 and "(tests.tasks.ok) was not started (gone): Redis had no trace of it." in logged[0]
        road.run()
        assert_books_are_right(batch)
        assert (batch.status, batch.succeeded) == ("succeeded", 3)
        assert {job.losses for job in batch.jobs.all()} == {0}

    def test_a_started_job_without_a_lease_was_interrupted(self, road, redis, keys):
        batch = fill(1)
        road.dispatch()
        taken = road.executor._turn(True)
        assert taken.kind == "job" and reconciled(road) == 0
        redis.delete(keys.execution(taken.rq_id, 1))
        assert reconciled(road) == 1
        job = batch.jobs.get()
        assert (job.status, job.losses, job.attempts) == ("created", 1, 0)
        assert redis.keys("rq:job:*") == []

    def test_a_job_that_runs_during_a_wipe_keeps_running_once_its_lease_is_renewed(self, road, redis):
        batch = fill(1)
        road.dispatch()
        taken = road.executor._turn(True)
        redis.flushdb()
        road.executor._scripts.renew([("executor", taken.rq_id, "default")])
        assert reconciled(road) == 0
        road.executor._taken = taken
        road.executor._outcome = outcome_of(claimed(batch), result='"through"')
        road.executor._turn(False)
        road.run()
        assert_books_are_right(batch)
        assert batch.jobs.get().result == "through"

    def test_a_job_that_a_plain_worker_has_taken_and_not_started_gets_a_second_look(self, road, redis):
        batch = fill(1)
        road.dispatch()
        redis.lpop("rq:queue:default")
        assert road.reconciler.look() == 0 and road.reconciler.suspects.since
        assert road.reconciler.look() == 0  # too soon
        assert reconciled(road) == 1
        road.run()
        assert_books_are_right(batch)
        assert (batch.status, batch.jobs.get().losses) == ("succeeded", 0)

    @pytest.mark.parametrize("act", ["cancel", "fail"])
    def test_keys_that_rq_writes_after_the_end_of_a_job_are_removed(self, road, redis, act, monkeypatch):
        for queue in ("default", "images"):
            fill(1, queue=queue)
        road.dispatch()
        late, waiting = (Queue(queue, connection=redis).jobs[0] for queue in ("default", "images"))
        assert (road.work(road.new_executor(queues=["default"])), road.record()) == (1, 1)
        # RQ reads the status before the end of the job, and writes after it.
        monkeypatch.setattr(Job, "_fetch_status", lambda job: JobStatus.STARTED)
        for job in (late, waiting):
            if act == "cancel":
                job.cancel()
            else:
                job.set_status("failed")
                job.failed_job_registry.add(job, -1)
        assert redis.ttl(late.key) == -1
        others = ["of-rq-itself", f"batch-other-{'0' * 32}-1"]
        redis.zadd(f"rq:{'canceled' if act == 'cancel' else 'failed'}:default", dict.fromkeys(others, 1))
        assert road.reconciler.sweep() == 1
        assert redis.keys("rq:job:*") == [waiting.key.encode()]
        registry = (
            late.failed_job_registry if act == "fail" else Queue("default", connection=redis).canceled_job_registry
        )
        assert sorted(registry.get_job_ids(cleanup=False)) == sorted(others)

    def test_leases_of_a_restored_redis_are_removed(self, road, redis, keys):
        fill(2)
        road.dispatch()
        ended, running = (road.new_executor(slot, f"executor {slot}")._turn(True).rq_id for slot in (1, 2))
        older = redis.dump(keys.job(ended))
        applying.record([outcome_of(BatchJob.objects.get(pk=keys.parse(ended)[0]))])
        redis.restore(keys.job(ended), 0, older, replace=True)
        for rq_id in (ended, running):
            redis.zadd(keys.started("default"), {f"{rq_id}:1": 1})
        assert road.reconciler.sweep() == 1
        assert redis.keys("rq:job:*") == [keys.job(running).encode()]
        assert redis.zrange(keys.started("default"), 0, -1) == [f"{running}:1".encode()]

    @pytest.mark.parametrize(
        ("act", "status"),
        [
            ("delete", "succeeded"),
            ("empty", "succeeded"),
            ("cancel", "failed"),
        ],
    )
    def test_what_users_do_on_rqs_pages(self, road, redis, act, status):
        batch = fill(1)
        road.dispatch()
        queue = Queue("default", connection=redis)
        if act == "delete":
            queue.jobs[0].delete()
        elif act == "empty":
            queue.empty()
        else:
            queue.jobs[0].cancel()
        assert reconciled(road) == 1
        road.run()
        assert_books_are_right(batch)
        assert batch.status == status

    def test_rows_whose_jobs_have_started_are_marked_running(self, road):
        batch = fill(2)
        road.dispatch()
        road.executor._turn(True)
        assert road.reconciler.mark_running() == 1
        running = batch.jobs.get(status="running")
        assert running.started_at and running.worker == "executor"
        assert road.reconciler.mark_running() == 0


class FakeTime:
    def __init__(self, now):
        self.now = now

    def monotonic(self):
        return self.now


class TestLoop:
    @pytest.fixture
    def coordinator(self, redis):
        coordinator = Coordinator("loop", lambda: True)
        assert coordinator._lease.acquire()
        coordinator._begin()
        return coordinator

    def test_the_poll_finds_a_row_without_a_wake_up(self, coordinator, redis, monkeypatch):
        monkeypatch.setattr("django_batches.transitions.creating.wake_coordinator", lambda *held, added: None)
        fill(2)
        coordinator.turn()
        assert redis.llen("rq:queue:default") == 2

    def test_added_and_returned_jobs_are_dispatched_without_a_poll(self, coordinator, redis, monkeypatch):
        coordinator.turn()
        coordinator._poll = Every(3600, at_once=False)
        monkeypatch.setattr(frontier, "queues", pytest.fail)
        first, second = fill(), fill(queue="images")
        coordinator.turn()
        assert [redis.llen(f"rq:queue:{queue}") for queue in ("default", "images")] == [1, 1]
        given_back = outcome_of(first.jobs.get(), Kind.INTERRUPTED)
        redis.xadd(Keys().outcomes, {"o": given_back.dumps()})
        coordinator.turn()
        assert [(job.status, job.dispatch) for job in (first.jobs.get(), second.jobs.get())] == [
            ("queued", 2), ("queued", 1),
        ]  # fmt: skip

    @pytest.mark.parametrize("text", ["", "1", "[]", "{}", "[1, 2, 3]", '["no key", 0, ["default"]]', '["01", 0]'])
    def test_a_wake_up_of_another_version_checks_everything(self, coordinator, redis, monkeypatch, text):
        coordinator.turn()
        coordinator._poll = Every(3600, at_once=False)
        monkeypatch.setattr("django_batches.transitions.creating.wake_coordinator", lambda *held, added: None)
        fill()
        redis.xadd(Keys().wake_ups, {"jobs": text})
        coordinator.turn()
        assert redis.llen("rq:queue:default") == 1

    def test_slow_full_scans_take_a_tenth_of_the_time(self, coordinator, monkeypatch):
        clock, looks = FakeTime(100.0), []

        def look():
            looks.append(clock.now)
            clock.now += 0.1

        monkeypatch.setattr(loop, "time", clock)
        monkeypatch.setattr(coordinator._dispatcher, "look_everywhere", look)
        while clock.now < 107:
            coordinator._dispatch_jobs(Turn(0, False, True, Recorded(), False))
            clock.now += 0.5
        assert looks == pytest.approx([100, 103.1, 106.2], abs=0.5)
        coordinator._dispatch_jobs(Turn(0, True, False, Recorded(), False))
        assert len(looks) == 4

    def test_the_turn_that_ends_a_batch_dispatches_its_callback(self, coordinator):
        executor = Executor(Options(), SlotTable(1), 0, "executor", os.getppid())
        batch = fill()
        coordinator.turn()
        assert [executor.step(), executor.step()] == ["job", "idle"]
        coordinator.turn()
        callback = batch.callbacks.get()
        assert (callback.status, callback.dispatch) == ("queued", 1)
        assert [executor.step(), executor.step()] == ["job", "idle"]
        coordinator.turn()
        assert batch.callbacks.get().status == "succeeded"

    def test_jobs_returned_without_running_do_not_count_for_the_rate(self, coordinator, redis):
        """Otherwise the queue would get far more than a second of work after a cancel."""
        executor = Executor(Options(), SlotTable(1), 0, "executor", os.getppid())
        cancelled = fill(4)
        coordinator.turn()
        cancelled.cancel()
        assert [executor.step() for _ in range(4)] == ["idle"] * 4
        assert redis.llen("rq:queue:default") == 0
        fill(20)
        coordinator.turn()
        assert redis.llen("rq:queue:default") == FLOOR

    def test_cancelled_and_paused_batches_are_in_the_set_of_batches_on_hold(self, coordinator, redis, keys):
        paused, cancelled, free = fill(2), fill(2), fill(2)
        coordinator.turn()
        paused.pause()
        cancelled.cancel()
        assert {key.decode() for key in redis.smembers(keys.on_hold)} == {paused.pk.hex, cancelled.pk.hex}
        redis.delete(keys.on_hold)  # as after a wipe
        coordinator._poll.soon()
        coordinator.turn()
        assert {key.decode() for key in redis.smembers(keys.on_hold)} == {paused.pk.hex, cancelled.pk.hex}
        paused.resume()
        coordinator.turn()
        assert {key.decode() for key in redis.smembers(keys.on_hold)} == {cancelled.pk.hex}
        assert free.pk

    def test_interrupted_cancels_and_retries_continue(self, coordinator):
        cancelled, retried = fill(3), fill(3)
        database.batches().filter(pk=cancelled.pk).update(cancelled_at=timezone.now())
        from_rq = claim(retried)
        road_record(from_rq, Kind.FAILED)
        database.batches().filter(pk=retried.pk).update(retry_position=0, finished_at=None, status="running", round=1)
        coordinator._poll.soon()
        coordinator.turn()
        assert_books_are_right(cancelled)
        assert_books_are_right(retried)
        assert cancelled.status == "cancelled"
        assert (retried.pending, retried.retry_position) == (3, None)

    def test_it_keeps_running_and_logs_an_outage_once(self, redis, monkeypatch, caplog):
        turns = iter(range(40))

        def is_back():
            return any("are back" in message for message in caplog.messages)

        coordinator = Coordinator("loop", lambda: is_back() or next(turns, None) is None)
        failures = iter([RedisError("refused")] * 3)

        def turn(self):
            error = next(failures, None)
            if error:
                raise error
            return real(self)

        real = Coordinator.turn
        monkeypatch.setattr(Coordinator, "turn", turn)
        monkeypatch.setattr(loop, "LONGEST_PAUSE", 0.01)
        coordinator.run()
        assert len([message for message in caplog.messages if "cannot reach Redis" in message]) == 1
        assert is_back()

    @pytest.mark.postgresql
    def test_many_outcomes_of_a_locked_batch_do_not_block_other_batches(self, coordinator, redis, keys, monkeypatch):
        monkeypatch.setattr(record, "CHUNK", 2)
        coordinator._recorder._count = 2
        coordinator._rewind = Every(0.0)  # as if a turn took longer than the interval
        coordinator._poll = Every(3600, at_once=False)  # which rewinds the stream
        locked, other = fill(6), fill(1)
        jobs = claim()
        for job in sorted(jobs, key=lambda job: job.batch_id == other.pk):
            redis.xadd(keys.outcomes, {"o": outcome_of(job).dumps()})
        with open_elsewhere(lambda: database.lock_batches([locked.pk])):
            for _ in range(5):
                coordinator.turn()
            assert Batch.objects.get(pk=other.pk).status == "succeeded"
        while redis.xlen(keys.outcomes):
            coordinator.turn()
        assert_books_are_right(locked)
        assert locked.status == "succeeded"

    def test_on_exit_it_applies_the_stream_and_releases_the_lease(self, redis, keys):
        batch = fill(3)
        for job in claim():
            redis.xadd(keys.outcomes, {"o": outcome_of(job).dumps()})
        Coordinator("loop", lambda: redis.xlen(keys.outcomes) == 0).run()
        assert_books_are_right(batch)
        assert batch.status == "succeeded"
        assert LeaseRow.objects.get().expires_at <= timezone.now()

    def test_an_unreadable_outcome_uses_an_attempt_of_its_job(self, coordinator, redis, keys, caplog):
        batch = fill(1, max_attempts=2)
        coordinator.turn()
        for _ in range(2):
            outcome = json.loads(outcome_of(batch.jobs.get(status="queued"), Kind.FAILED).dumps())
            redis.xadd(keys.outcomes, {"o": json.dumps(outcome | {"retry_max": 2.5})})
            coordinator.turn()
        assert_books_are_right(batch)
        job = batch.jobs.get()
        assert (job.status, job.attempts) == ("failed", 2)
        assert "cannot be read: another version" in job.error and "cannot be read" in caplog.text

    def test_large_outcomes_are_read_and_written_in_small_groups(self, coordinator, redis, keys, monkeypatch):
        monkeypatch.setattr(record, "LARGEST", 1_000)
        monkeypatch.setattr(job_updates, "LARGEST", 1_000)
        batch = fill(10)
        for job in claim():
            redis.xadd(keys.outcomes, {"o": outcome_of(job, result=f'"{"x" * 400}"').dumps()})
        with statements() as made:
            coordinator.turn()
        assert coordinator._recorder._count == 1
        assert max(map(len, made)) < 4_000
        assert_books_are_right(batch)
        assert batch.status == "succeeded"

    @pytest.mark.postgresql
    def test_postponed_outcomes_are_remembered_if_a_pass_does_not_reach_the_end(self, coordinator, redis, keys):
        recorder = coordinator._recorder
        first, second = fill(1), fill(1)
        jobs = {job.batch_id: job for job in claim()}
        entries = [redis.xadd(keys.outcomes, {"o": outcome_of(jobs[b.pk]).dumps()}) for b in (first, second)]
        with open_elsewhere(lambda: database.lock_batches([first.pk, second.pk])):
            recorder.record(recorder.read(1)[0])
            for _ in range(3):  # rounds of which each comes to the first alone
                recorder.rewind()
                recorder._count = 1
                recorder.record(recorder.read(1)[0])
                assert recorder.unapplied(entries[1]) == {first.pk, second.pk}
        while redis.xlen(keys.outcomes):
            coordinator.turn()
        assert recorder.unapplied(entries[1]) == set()

    def test_an_entry_that_is_not_an_outcome_is_deleted(self, coordinator, redis, keys, caplog):
        redis.xadd(keys.outcomes, {"o": "garbage"})
        redis.xadd(keys.outcomes, {"x": "garbage"})
        coordinator.turn()
        assert redis.xlen(keys.outcomes) == 0
        assert "cannot be read" in caplog.text


def test_a_pushed_job_has_the_same_fields_as_one_that_rq_enqueued(road, redis, keys):
    """Compares each field with a job that RQ's own queue enqueued."""
    fill(1)
    road.dispatch()
    (rq_id,) = redis.lrange("rq:queue:default", 0, -1)
    ours = redis.hgetall(keys.job(rq_id.decode()))
    theirs = redis.hgetall(Queue("q", connection=redis).enqueue("django_batches.execution.run", result_ttl=0).key)
    assert {key for key in ours if not key.startswith(b"batches")} <= set(theirs) | {b"failure_ttl"}
    for field in (b"created_at", b"enqueued_at"):
        assert len(ours[field]) == len(theirs[field])
    for field in (b"status", b"timeout", b"result_ttl", b"data"):
        assert ours[field] == theirs[field], field
    assert Job.fetch(rq_id.decode(), connection=redis).get_status() == "queued"


def claimed(batch):
    return batch.jobs.get()


def road_record(jobs, kind):
    applying.record([outcome_of(job, kind) for job in jobs])
