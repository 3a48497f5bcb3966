"""From user code to RQ and back in one process, with a real database, Redis and executor."""

import json
import logging
import os
import signal
import time

import pytest
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone
from redis import Connection
from rq import Queue

from django_batches import Batch, current_batch, current_job, database
from django_batches.coordinator import dispatch
from django_batches.execution import runner
from django_batches.models import BatchJob
from django_batches.transitions import applying, children, repairing
from django_batches.transport.outcomes import Kind
from django_batches.worker.children import COORDINATOR, FIRST_EXECUTOR, MAINTENANCE, Child
from django_batches.worker.options import Options
from django_batches.worker.processes import describe_exit, fork
from django_batches.worker.redis_link import PATIENCE
from django_batches.worker.slots import SlotTable
from django_batches.worker.supervisor import Supervisor

from .. import tasks
from ..road import claim, outcome_of


def assert_books_are_right(batch):
    batch.refresh_from_db()
    assert repairing.drift(batch.pk) == {}


def errors(batch):
    return list(batch.jobs.values_list("status", "error"))


def test_a_batch_runs_and_its_callbacks_are_called(road, ledger):
    with Batch.open("Images") as batch:
        batch.on_success(tasks.told, ledger.path, text="success")
        batch.on_finish(tasks.told, ledger.path, text="finish")
        batch.on_failure(tasks.told, ledger.path, text="failure")
        batch.map(tasks.ok, range(100))
    assert road.run() == 102
    assert_books_are_right(batch)
    assert (batch.status, batch.succeeded) == ("succeeded", 100)
    assert sorted(ledger.lines) == ["finish:succeeded:100/100", "success:succeeded:100/100"]
    assert list(batch.results()) == list(range(100))
    assert batch.result == "told success"
    assert batch.wait(timeout=0) is True
    job = batch.jobs.first()
    assert job.worker == "executor" and job.created_at <= job.started_at <= job.finished_at


def test_a_finished_batch_leaves_no_keys_in_redis(road, redis, keys):
    with Batch.open(max_attempts=2) as batch:
        batch.on_finish(tasks.ok)
        batch.map(tasks.flaky_item, range(50))
    road.run()
    assert_books_are_right(batch)
    left = {key.decode() for key in redis.keys("*")}
    known = {
        keys.outcomes,
        keys.wake_ups,
        keys.wake,
        keys.idle,
        f"{keys.own}:fence",
        f"{keys.own}:pushed",
        f"{keys.own}:slot:executor",
        "rq:queues",
    }
    assert left <= known | {"rq:worker:executor"}
    assert redis.xlen(keys.outcomes) == 0


def test_a_failed_job_is_retried_and_succeeds(road, ledger):
    with Batch.open(max_attempts=3) as batch:
        batch.enqueue(tasks.flaky, ledger.path, failures=2)
    road.run()
    assert_books_are_right(batch)
    job = batch.jobs.get()
    assert (job.status, job.attempts, job.result, job.error) == ("succeeded", 3, 3, "")


def test_a_returned_rq_retry_applies_its_own_limit(road, ledger):
    with Batch.open(max_attempts=1) as batch:
        batch.enqueue(tasks.retry_later, ledger.path, 2)
    road.run()
    assert_books_are_right(batch)
    assert ledger.count("run") == 3
    assert errors(batch) == [("failed", "Retry: the job returned Retry(max=2) and asked to run again.")]


@pytest.mark.parametrize("most", [2.0, 2.5])
def test_a_fractional_limit_of_rq_retry_is_rounded_down(road, ledger, most):
    with Batch.open() as batch:
        batch.enqueue(tasks.retry_later, ledger.path, most)
    road.run()
    assert_books_are_right(batch)
    assert ledger.count("run") == 3 and batch.status == "failed"


@pytest.mark.parametrize("kind", ["no number", "endless", "endless interval"])
def test_an_invalid_rq_retry_fails_the_job_at_once(road, ledger, kind):
    with Batch.open(max_attempts=9) as batch:
        batch.enqueue(tasks.retry_strangely, ledger.path, kind)
    road.run()
    assert_books_are_right(batch)
    assert ledger.count("run") == 1 and batch.status == "failed"


def test_a_job_knows_its_batch_and_itself(road):
    assert current_batch() is None and current_job() is None
    with Batch.open() as batch:
        batch.on_success(tasks.whose_callback)
        batch.enqueue(tasks.who_am_i)
    road.run()
    batch.refresh_from_db()
    assert batch.jobs.get().result == [str(batch.pk), str(batch.jobs.get().pk)]
    assert batch.result == [str(batch.pk), str(batch.pk), "success"]
    assert current_batch() is None


def test_a_running_job_adds_siblings(road, ledger):
    with Batch.open() as batch:
        batch.on_success(tasks.told, ledger.path)
        batch.enqueue(tasks.grow, ledger.path, 30)
    road.run()
    assert_books_are_right(batch)
    assert (batch.total, batch.succeeded) == (31, 31)
    assert ledger.lines == [*(str(item) for item in range(30)), ":succeeded:31/31"]


def test_a_callback_cannot_add_to_its_ended_batch(road):
    with Batch.open() as batch:
        batch.on_success(tasks.add_to_ended)
        batch.enqueue(tasks.ok)
    road.run()
    assert_books_are_right(batch)
    callback = batch.callbacks.get()
    assert callback.status == "failed" and "BatchFinished" in callback.error
    assert (batch.status, batch.total) == ("succeeded", 1)


def test_waiting_inside_a_job_is_refused(road):
    with Batch.open() as batch:
        batch.enqueue(tasks.wait_for_batch)
    road.run()
    assert "inside a job occupies a worker" in batch.jobs.get().error


def test_a_callback_may_write_metadata_while_outcomes_are_applied(road):
    with Batch.open() as batch:
        batch.on_failure(tasks.write_metadata)
        batch.map(tasks.fail_odd, range(20))
    road.run()
    assert_books_are_right(batch)
    assert batch.metadata == {"x": 1}
    assert (batch.succeeded, batch.failed) == (10, 10)


def test_an_async_function_runs(road):
    with Batch.open() as batch:
        batch.enqueue(tasks.asynchronous, 5)
    road.run()
    assert batch.jobs.get().result == 5


@pytest.mark.parametrize(
    ("func", "args", "error"),
    [
        (tasks.exit_now, (), "SystemExit: 3"),
        (tasks.interrupt, (), "KeyboardInterrupt"),
        (tasks.memory, (), "MemoryError"),
        (tasks.unprintable, (), "Unprintable: <its message cannot be printed: RuntimeError>"),
        (tasks.recurse, (), "RecursionError: maximum recursion depth exceeded"),
        (tasks.raises, ("a\x00b\ud800",), "ValueError: a\ufffdb\ufffd"),
        (tasks.raises_long, (5_000_000,), "ValueError: ååå"),
        (tasks.returns, ("nan",), "TypeError: the result: nan does not exist in JSON"),
        (tasks.returns, ("object",), "TypeError: the result: an object cannot be passed as JSON"),
        (tasks.returns, ("int keys",), "TypeError: the result: the key 1 of the dict"),
        (tasks.returns, ("large",), "ValueError: The result is 5,000,002 bytes of JSON, more than MAX_PAYLOAD"),
        (tasks.returns, ("deep",), "ValueError: The result is nested too deeply, or a list or dict contains"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_whatever_a_job_raises_fails_only_that_job(road, func, args, error):
    with Batch.open() as batch:
        batch.enqueue(func, *args)
        batch.enqueue(tasks.ok, 1)
    road.work_with_replacement()
    assert_books_are_right(batch)
    (status, message), other = errors(batch)
    assert status == "failed" and message.startswith(error), message
    assert len(message) < 3000 and len(batch.jobs.first().traceback) < 33_000
    assert other == ("succeeded", "")


@pytest.mark.parametrize("kind", ["nul", "surrogate"])
def test_a_result_with_nul_or_a_lone_surrogate_is_stored_unchanged(road, kind):
    with Batch.open() as batch:
        batch.enqueue(tasks.returns, kind)
    road.run()
    assert batch.jobs.get().result == tasks.returns(kind)


def test_a_job_whose_result_cannot_be_stored_is_not_retried(road):
    with Batch.open(max_attempts=5) as batch:
        batch.enqueue(tasks.returns, "object")
    road.run()
    job = batch.jobs.get()
    assert (job.status, job.attempts) == ("failed", 1)


def test_a_final_failure_is_logged_once_as_an_error_with_its_traceback(road, caplog, ledger):
    with Batch.open(max_attempts=2) as batch:
        batch.enqueue(tasks.boom, "no")
    with caplog.at_level(logging.WARNING, "django_batches.jobs"):
        road.run()
    records = [record for record in caplog.records if record.name == "django_batches.jobs"]
    assert [record.levelname for record in records] == ["WARNING", "ERROR"]
    assert all(record.exc_info and record.exc_info[0] is ValueError for record in records)
    assert str(batch.jobs.get().pk) in records[1].getMessage()


def test_a_timeout_fails_the_job_and_replaces_the_process(road):
    with Batch.open(timeout=1) as batch:
        batch.enqueue(tasks.overrun)
        batch.enqueue(tasks.ok)
    executor = road.executor
    road.dispatch()
    assert executor.step() == "job"
    assert executor.step() == "exit"
    road.work_with_replacement()
    assert errors(batch)[0] == ("failed", "JobTimeoutException: The job ran for more than its timeout of 1 s.")
    assert errors(batch)[1][0] == "succeeded"


def test_a_function_that_cannot_be_imported_is_retried_later_and_fails_at_the_third_loss(road):
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
    batch.jobs.update(func="tests.tasks.not_deployed_yet")
    for losses in (1, 2):
        road.run()
        job = batch.jobs.get()
        assert (job.status, job.losses, job.attempts) == ("scheduled", losses, 0)
        assert (job.due_at - timezone.now()).total_seconds() > 20
        batch.jobs.update(due_at=timezone.now())
    road.run()
    assert_books_are_right(batch)
    job = batch.jobs.get()
    assert (job.status, job.losses, job.attempts) == ("failed", 3, 0)
    assert job.error.startswith("It could not be imported, 3 losses in all.")
    assert "ImportError" in job.error and "not_deployed_yet" in job.error


def test_a_function_that_is_not_allowed_does_not_run_even_if_its_row_names_it(road):
    with Batch.open() as batch:
        batch.enqueue(tasks.ok, "true")
    batch.jobs.update(func="os.system")
    road.run()
    assert errors(batch)[0][0] == "failed" and "FunctionNotAllowed: os.system may not run" in errors(batch)[0][1]


def test_a_forged_message_in_redis_imports_nothing(road, redis, keys):
    """An attacker with write access to Redis cannot make a worker import anything."""
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
    road.dispatch()
    (rq_id,) = redis.lrange("rq:queue:default", 0, -1)
    message = json.loads(redis.hget(keys.job(rq_id.decode()), "batches"))
    message[4], message[9] = "os.system", [["true"], {}]
    redis.hset(keys.job(rq_id.decode()), "batches", json.dumps(message))
    road.run()
    assert "FunctionNotAllowed" in batch.jobs.get().error


def test_a_job_with_an_unreadable_message_does_not_run_and_is_dispatched_again_later(road, redis, keys):
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
    road.dispatch()
    (rq_id,) = redis.lrange("rq:queue:default", 0, -1)
    redis.hset(keys.job(rq_id.decode()), "batches", "garbled")
    road.run()
    job = batch.jobs.get()
    assert (job.status, job.losses, job.attempts) == ("scheduled", 1, 0)
    database.jobs().update(due_at=timezone.now())
    road.run()
    assert_books_are_right(batch)
    assert (batch.status, batch.jobs.get().dispatch) == ("succeeded", 2)


def test_after_a_cancel_no_queued_job_starts(road, ledger):
    with Batch.open() as batch:
        batch.on_finish(tasks.told, ledger.path, text="finish")
        batch.map(tasks.append_item, range(4), ledger.path)
    assert road.dispatch() == 4
    assert road.executor.step() == "job"
    assert batch.cancel() == 0
    road.run()
    assert_books_are_right(batch)
    assert (batch.status, batch.succeeded, batch.cancelled) == ("cancelled", 1, 3)
    assert ledger.lines == ["0", "finish:cancelled:1/4"]


def test_after_a_pause_no_queued_job_starts_until_the_resume(road, ledger, redis, keys):
    with Batch.open() as batch:
        batch.map(tasks.append_item, range(4), ledger.path)
    road.dispatch()
    assert road.executor.step() == "job"
    batch.pause()
    road.run()
    assert_books_are_right(batch)
    assert ledger.lines == ["0"]
    assert (batch.pending, batch.in_flight) == (3, 0)
    batch.resume()
    redis.delete(keys.on_hold)  # as the coordinator does, see test_coordinator
    road.run()
    assert_books_are_right(batch)
    assert batch.status == "succeeded" and len(ledger.lines) == 4


def test_retry_after_failure_ends_in_success(road, ledger):
    with Batch.open() as batch:
        batch.on_success(tasks.told, ledger.path, text="success")
        batch.on_failure(tasks.told, ledger.path, text="failure")
        batch.enqueue(tasks.flaky, ledger.path + ".runs", failures=1)
    road.run()
    assert Batch.objects.get().status == "failed"
    assert Batch.objects.get().retry_failed() == 1
    road.run()
    assert_books_are_right(batch)
    assert batch.status == "succeeded"
    assert ledger.lines == ["failure:failed:0/1", "success:succeeded:1/1"]


def test_two_projects_on_one_redis_do_not_take_each_others_jobs(road, redis):
    with Batch.open() as batch:
        batch.map(tasks.ok, range(3))
    road.dispatch()
    with override_settings(DJANGO_BATCHES={"CACHE": "batches", "NAMESPACE": "other"}):
        other = road.new_executor(1, "other")
        assert other._scripts.keys.namespace == "other"
        assert other.step() == "idle"
    road.run()
    assert_books_are_right(batch)
    assert batch.status == "succeeded"


def test_a_job_that_is_not_started_does_not_use_the_budget(road, redis, keys):
    road.slots = SlotTable(4, max_jobs=2)
    executor, budget = road.new_executor(1, "limited"), road.slots._budget
    batch = Batch.open().__enter__()
    batch.map(tasks.ok, range(3))
    batch.seal()
    road.dispatch()
    first, second, _ = redis.lrange(keys.queue("default"), 0, -1)
    redis.hset(b"rq:job:" + first, "batches", "no message of ours")
    redis.hset(b"rq:job:" + second, "batches_pushed_at", 0)  # so long ago that the row is checked
    BatchJob.objects.filter(position=1).update(dispatch=7)
    assert [executor.step() for _ in range(3)] == ["job"] * 3
    assert road.slots.started[1] == 1 and budget.get_value() == 1
    assert executor.step() == "idle" and budget.get_value() == 1


@pytest.mark.parametrize("is_in_its_job", [False, True])
def test_an_executor_that_dies_before_its_job_releases_its_share_of_the_budget(redis, is_in_its_job):
    supervisor = Supervisor(Options(workers=1, max_jobs=3))
    slots, slot = supervisor._slots, FIRST_EXECUTOR
    assert slots.reserve(slot)
    if is_in_its_job:
        slots.count(slot)
    supervisor._child_ended(Child(0, slot, "dying"), -signal.SIGKILL)
    assert slots._budget.get_value() == (2 if is_in_its_job else 3)


def test_a_job_does_not_start_again_after_a_success_reported_to_the_database(road, ledger):
    """Its host had no Redis and was considered lost, and the next run was not in a queue any more."""
    with Batch.open() as batch:
        batch.enqueue(tasks.append, ledger.path, "run")
    (old,) = claim()
    applying.record([outcome_of(old, Kind.INTERRUPTED)])
    road.dispatch()
    applying.record([outcome_of(old)])
    assert batch.jobs.get().status == "succeeded"
    assert road.executor._redis.ping()
    road.executor._connected_at = 0.0  # a new connection would check the rows of all jobs
    assert road.executor.step() == "job"
    road.run()
    assert_books_are_right(batch)
    assert ledger.lines == [] and batch.status == "succeeded"


def test_an_rq_job_may_have_any_id(road, redis):
    queue = Queue("default", connection=redis)
    job = queue.enqueue("tests.tasks.ok", 1, job_id="batch-report-2026")
    assert road.executor.step() == "rq"
    assert job.get_status() == "finished"


def test_a_process_that_a_job_forks_reports_no_outcome(road, ledger):
    with Batch.open() as batch:
        batch.enqueue(tasks.fork_and_return, ledger.path)
    road.run()
    assert batch.jobs.get().result == "parent" and ledger.lines == ["parent"]


def test_a_late_success_removes_the_next_run_from_the_queue(road, redis, ledger):
    with Batch.open() as batch:
        batch.enqueue(tasks.append, ledger.path, "run")
    road.dispatch()
    assert road.executor.step() == "job"
    (claimed,) = batch.jobs.all()
    applying.record([outcome_of(claimed, Kind.INTERRUPTED)])
    road.dispatch()
    assert redis.llen("rq:queue:default") == 1
    road.executor._turn(False)
    road.record()
    assert redis.llen("rq:queue:default") == 0
    road.run()
    assert_books_are_right(batch)
    assert ledger.lines == ["run"]


@pytest.mark.parametrize("callback", [False, True], ids=["job", "callback"])
def test_an_executor_that_was_frozen_does_not_start_a_job_dispatched_again_meanwhile(
    road, ledger, monkeypatch, callback
):
    """Found by the chaos tests: a process hung before the function for longer than its lease, and ran it after all."""
    monkeypatch.setattr(road.executor, "_connected_at", 0.0)  # as after its first seconds, when it checks no row
    with Batch.open() as batch:
        batch.on_finish(tasks.told, ledger.path, text="callback") if callback else None
        batch.enqueue(tasks.ok if callback else tasks.append, *([1] if callback else [ledger.path, "job"]))
    if callback:
        road.dispatch(), road.work(), road.record()
    road.dispatch()
    now = time.monotonic
    freeze_at, thaw = (database.dialect(), "batch") if callback else (road.executor._scripts, "turn")
    real = getattr(freeze_at, thaw)

    def frozen(*args, **kwargs):
        answer = real(*args, **kwargs)
        monkeypatch.setattr(freeze_at, thaw, real)
        monkeypatch.setattr(time, "monotonic", lambda: now() + runner.DELAYED + 1)
        (claimed,) = BatchJob.objects.filter(status="queued")
        applying.record([outcome_of(claimed, Kind.INTERRUPTED)])
        return answer

    monkeypatch.setattr(freeze_at, thaw, frozen)
    assert road.executor.step() == "job"
    assert ledger.lines == []
    road.run()
    assert_books_are_right(batch)
    assert ledger.lines == (["callback:succeeded:1/1"] if callback else ["job"])


def test_large_and_unicode_arguments_arrive_unchanged(road):
    values = ["å\U0001f600\x00\ud800", {"k": [1.5, None, True]}, "x" * 500_000, -(2**70)]
    with Batch.open() as batch:
        batch.map(tasks.ok, values)
    road.run()
    assert list(batch.results()) == values


def test_a_busy_executor_makes_no_database_queries(road, monkeypatch):
    monkeypatch.setattr(dispatch, "FLOOR", 100)
    with Batch.open() as batch:
        batch.map(tasks.ok, range(20))
    road.executor.step()
    # As after its first seconds: its connection to Redis is older than the jobs.
    monkeypatch.setattr(road.executor, "_connected_at", 0.0)
    road.dispatch()
    with connection.execute_wrapper(refuse):
        assert road.work() == 20
    road.run()
    assert_books_are_right(batch)
    assert batch.status == "succeeded"


def refuse(execute, sql, params, many, context):
    raise AssertionError(f"The executor asked the database: {sql}")


def test_one_call_to_redis_per_busy_job(road, monkeypatch):
    monkeypatch.setattr(dispatch, "FLOOR", 100)
    with Batch.open() as batch:
        batch.map(tasks.ok, range(20))
    road.dispatch()
    road.executor.step()
    calls = []
    send = Connection.send_packed_command

    def counted(self, command, *args, **options):
        calls.append(b"".join(command).split(b"\r\n")[2])
        return send(self, command, *args, **options)

    monkeypatch.setattr(Connection, "send_packed_command", counted)
    for _ in range(19):
        assert road.executor.step() == "job"
    assert calls == [b"EVALSHA"] * 19
    assert BatchJob.objects.count() == 20 and batch.pk


def test_a_job_of_a_restored_redis_does_not_run_again(road, redis, ledger):
    with Batch.open() as batch:
        batch.enqueue(tasks.append, ledger.path, "run")
    road.dispatch()
    dump = {key: redis.dump(key) for key in redis.keys("rq:*")}
    road.work()
    road.record()
    for key, value in dump.items():
        redis.restore(key, 0, value, replace=True)
    fresh = road.new_executor(1, "after the restart")
    assert fresh.step() == "job"  # taken, checked, and not started
    fresh.step()
    road.record()
    assert_books_are_right(batch)
    job = batch.jobs.get()
    assert (job.status, job.attempts, job.worker) == ("succeeded", 1, "executor")
    assert ledger.lines == ["run"]


@pytest.mark.parametrize(
    "leak", ["translation", "timezone", "cwd", "signal", "autocommit", "atomic", "broken", "umask"]
)
def test_what_a_job_leaks_does_not_reach_the_next_one(road, leak, caplog):
    before = (os.getcwd(), signal.getsignal(signal.SIGUSR2))
    with Batch.open() as batch:
        batch.enqueue(tasks.observe)
        batch.enqueue(tasks.leak, leak)
        batch.enqueue(tasks.observe)
    road.run()
    assert_books_are_right(batch)
    first, _, last = batch.jobs.all()
    assert batch.status == "succeeded", errors(batch)
    assert first.result == last.result
    assert (os.getcwd(), signal.getsignal(signal.SIGUSR2)) == before


def test_a_callback_whose_batch_cannot_be_read_neither_starts_nor_fails(road, ledger, monkeypatch):
    with Batch.open() as batch:
        batch.on_finish(tasks.told, ledger.path)
    road.dispatch()

    def away(batch_id):
        raise OperationalError("the database is away")

    with monkeypatch.context() as broken:
        broken.setattr(database.dialect(), "batch", away)
        assert road.work() == 1
    road.record()
    callback = batch.callbacks.get()
    assert (callback.status, callback.attempts, callback.losses) == ("created", 0, 0)
    assert ledger.lines == []
    road.run()
    assert ledger.lines == [":succeeded:0/0"]


@pytest.mark.postgresql
def test_a_lost_connection_does_not_fail_a_job_that_returns_a_batch(road):
    with Batch.open() as batch:
        batch.enqueue(tasks.return_child_over_a_lost_connection)
    road.run()
    assert children.notify_parents(road.lease) == 1
    assert_books_are_right(batch)
    job = batch.jobs.get()
    assert (job.status, job.attempts, job.result) == ("succeeded", 1, [1, None, "three"]), job.error


def test_a_hanging_maintenance_or_coordinator_is_killed_after_an_interruption(redis):
    supervisor = Supervisor(Options())
    hanging = [fork(lambda: time.sleep(60), "hanging") for _ in (COORDINATOR, MAINTENANCE)]
    for slot, pid in zip((COORDINATOR, MAINTENANCE), hanging, strict=True):
        supervisor._children[slot] = Child(pid, slot, "hanging")
    supervisor._kill_unresponsive()
    assert all(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in hanging)
    supervisor._interrupt("it received SIGTERM again")
    supervisor._interrupted_at -= PATIENCE
    supervisor._kill_unresponsive()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in hanging] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize(("slot", "seconds"), [(COORDINATOR, 0.2), (FIRST_EXECUTOR, 1.0)])
def test_a_child_that_dies_at_once_is_replaced_after_a_pause_that_is_short_for_a_coordinator(redis, slot, seconds):
    supervisor = Supervisor(Options())
    supervisor._child_ended(Child(0, slot, "dying"), 1)
    assert supervisor._not_before[slot] - time.monotonic() == pytest.approx(seconds, abs=0.1)


def test_a_signal_without_a_name_is_described_by_its_number():
    assert [describe_exit(code) for code in (3, -9, -36)] == ["exit code 3", "signal SIGKILL", "signal 36"]
