"""`manage.py batchworker` as a real process with real children: started, killed, frozen and stopped."""

import os
import signal
import time
from datetime import timedelta

import pytest
from django.db import connection
from rq import Callback, Queue, Retry, Worker
from rq.command import send_shutdown_command, send_stop_job_command
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.suspension import resume, suspend

from django_batches import Batch
from django_batches.models import Lease
from django_batches.transitions import repairing
from django_batches.worker.processes import fork

from .. import tasks
from ..commanding import batches
from ..processes import WorkerProcess, is_alive, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

MEMORY = 256
"""MB, several times what an executor uses without a job."""


def fill(func, count=1, *args, **options):
    with Batch.open(**options) as batch:
        for _ in range(count):
            batch.enqueue(func, *args)
    return batch


def wait_for_end(batch, seconds=45):
    assert batch.wait(seconds), Batch.objects.filter(pk=batch.pk).values()
    assert repairing.drift(batch.pk) == {}
    return batch


def wait_for_run(ledger, text="begin", count=1):
    wait_until(lambda: ledger.count(text) >= count)


def executors(redis):
    return Worker.all(connection=redis)


def test_a_batch_runs_from_the_first_enqueue_to_the_callback(start_worker, ledger):
    start_worker("--workers", 2)
    with Batch.open() as batch:
        batch.on_success(tasks.told, ledger.path)
        batch.map(tasks.append_item, range(200), ledger.path)
    wait_for_end(batch)
    assert ledger.lines[-1] == ":succeeded:200/200"
    assert sorted(map(int, ledger.lines[:-1])) == list(range(200))


def test_a_worker_works_only_the_named_queues(start_worker, redis):
    start_worker("images", "mail", "--workers", 1)
    mail, other = fill(tasks.ok, queue="mail"), fill(tasks.ok, queue="other")
    wait_for_end(mail)
    other.refresh_from_db()
    assert other.pending == 1
    (worker,) = wait_until(lambda: executors(redis))
    assert [queue.name for queue in worker.queues] == ["images", "mail"]


def test_sigterm_finishes_the_running_job_and_applies_its_outcome(start_worker, ledger, redis, keys):
    worker = start_worker("--workers", 1)
    batch = fill(tasks.begin_and_end, 1, ledger.path, 1.0)
    wait_for_run(ledger)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert ledger.lines == ["begin", "end"]
    wait_for_end(batch, 0.1)
    assert redis.xlen(keys.outcomes) == 0
    assert executors(redis) == []
    assert "finishes its running jobs" in worker.log


def test_a_second_sigterm_interrupts_the_job_and_it_runs_again(start_worker, ledger):
    first = start_worker("--workers", 1)
    batch = fill(tasks.begin_and_end, 1, ledger.path, 30.0)
    wait_for_run(ledger)
    first.signal(signal.SIGTERM)
    wait_until(lambda: "finishes its running jobs" in first.log)
    first.signal(signal.SIGTERM)
    assert first.wait() == 1
    job = batch.jobs.get()
    assert job.status in ("created", "queued") and (job.attempts, job.losses) == (0, 1)
    start_worker("--workers", 1)
    wait_for_run(ledger, count=2)


def test_the_end_of_the_grace_period_interrupts_the_job(start_worker, ledger):
    worker = start_worker("--workers", 1, "--grace", 0.5)
    batch = fill(tasks.begin_and_end, 1, ledger.path, 30.0)
    wait_for_run(ledger)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    assert batch.jobs.get().losses == 1


def test_a_supervisor_keeps_working_after_sigstop_and_sigcont(start_worker):
    worker = start_worker("--workers", 1)
    wait_for_end(fill(tasks.ok))
    for _ in range(3):
        worker.signal(signal.SIGSTOP)
        time.sleep(0.3)  # longer than the supervisor waits for a signal
        worker.signal(signal.SIGCONT)
        wait_for_end(fill(tasks.ok))
    assert worker.process.poll() is None and "received" not in worker.log
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_killed_executor_is_replaced_at_once(start_worker, ledger):
    worker = start_worker("--workers", 1)
    batch = fill(tasks.write_pid_and_sleep, 1, ledger.path, max_attempts=2)
    wait_until(lambda: ledger.lines)
    os.kill(int(ledger.lines[0]), signal.SIGKILL)
    wait_until(lambda: len(ledger.lines) == 2)  # its lease lasts 45 s
    os.kill(int(ledger.lines[1]), signal.SIGKILL)
    wait_for_end(batch)
    job = batch.jobs.get()
    assert (job.status, job.attempts, job.losses) == ("failed", 2, 2)
    assert job.error == "WorkerKilled: its process died: signal SIGKILL"
    assert batch.created_at < job.started_at < job.finished_at
    assert "died in job batch-tests-" in worker.log
    wait_for_end(fill(tasks.ok))


@pytest.mark.parametrize("func", [tasks.segfault, tasks.hard_exit], ids=["segfault", "os._exit"])
def test_a_job_whose_process_dies_is_counted(start_worker, func):
    start_worker("--workers", 1)
    batch = wait_for_end(fill(func))
    assert batch.failed == 1 and "WorkerKilled" in batch.jobs.get().error


def test_the_children_of_a_killed_supervisor_die(start_worker, ledger):
    worker = start_worker("--workers", 2)
    fill(tasks.write_pid_and_sleep, 2, ledger.path)
    wait_until(lambda: len(ledger.lines) == 2)
    children = worker.children()
    assert len(children) == 4
    worker.process.kill()
    worker.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in children))


@pytest.mark.slow
def test_a_job_of_a_lost_host_runs_again(start_worker, ledger, redis, keys, monkeypatch):
    lost = start_worker("--workers", 1, command=WorkerProcess.SHORT_TIMES)
    batch = fill(tasks.write_pid_and_sleep, 1, ledger.path)
    wait_until(lambda: ledger.lines)
    lost.process.kill()
    lost.wait()
    start_worker("--workers", 1, command=WorkerProcess.SHORT_TIMES)
    # As if the leases of 45 s had expired.
    for key in redis.keys("rq:execution:*"):
        redis.delete(key)
    Lease.objects.update(expires_at=batch.created_at)
    wait_until(lambda: len(ledger.lines) == 2, 90)
    assert batch.jobs.get().losses == 1


@pytest.mark.slow
def test_a_job_that_ignores_its_timeout_is_killed(start_worker, monkeypatch):
    start_worker("--workers", 1)
    batch = wait_for_end(fill(tasks.swallow_timeout, timeout=1), 40)
    assert "had to be killed" in batch.jobs.get().error
    assert batch.jobs.get().error.startswith("JobTimeoutException")


@pytest.mark.parametrize("by", ["RQ", "position", "id"])
def test_a_stopped_job_fails_for_good(start_worker, ledger, redis, by):
    start_worker("--workers", 1)
    batch = fill(tasks.begin_and_end, 1, ledger.path, 60.0, max_attempts=5)
    wait_for_run(ledger)
    (rq_id, _), *_ = StartedJobRegistry("default", connection=redis).get_job_and_execution_ids()
    wait_until(lambda: redis.pubsub_numsub(f"rq:pubsub:{Job.fetch(rq_id, redis).worker_name}")[0][1])
    job = batch.jobs.get()
    if by == "RQ":
        assert job.rq_id == rq_id
        send_stop_job_command(redis, rq_id)
    else:
        assert batches("stop", batch.pk, job.position if by == "position" else job.pk).code == 0
    wait_for_end(batch)
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("failed", 1)
    assert job.error == "JobStopped: it was stopped on request."


def test_suspend_and_resume(start_worker, redis):
    start_worker("--workers", 1)
    wait_until(lambda: executors(redis))
    suspend(redis)
    wait_until(lambda: executors(redis)[0].get_state() == "suspended")
    batch = fill(tasks.ok)
    wait_until(lambda: redis.llen("rq:queue:default") == 1)
    resume(redis)
    wait_for_end(batch)


def test_executors_are_registered_as_rq_workers(start_worker, ledger, redis):
    start_worker("--workers", 2, "--name", "shop")
    fill(tasks.begin_and_end, 1, ledger.path, 60.0)
    wait_for_run(ledger)
    found = wait_until(lambda: len(executors(redis)) == 2 and executors(redis))
    busy = [worker for worker in found if worker.get_current_job_id()]
    assert all(worker.name.startswith("shop.") and worker.hostname for worker in found)
    assert len(busy) == 1 and busy[0].get_state() == "busy"
    assert Worker.count(queue=Queue("default", connection=redis)) == 2


def test_rqs_shutdown_command_stops_the_worker(start_worker, redis):
    worker = start_worker("--workers", 1)
    (found,) = wait_until(lambda: executors(redis))
    wait_until(lambda: redis.pubsub_numsub(f"rq:pubsub:{found.name}")[0][1])
    send_shutdown_command(redis, found.name)
    assert worker.wait() == 0


def test_a_burst_exits_when_no_work_is_left(start_worker, ledger):
    with Batch.open(max_attempts=2) as batch:
        batch.on_finish(tasks.told, ledger.path)
        batch.enqueue(tasks.grow, ledger.path, 20)
    worker = start_worker("--burst", "--workers", 2)
    assert worker.wait() == 0
    wait_for_end(batch, 0.1)
    assert ledger.lines[-1] == ":succeeded:21/21"
    assert start_worker("--burst").wait() == 0


def test_max_jobs_stops_the_worker_after_so_many_jobs(start_worker):
    batch = fill(tasks.ok, 10)
    worker = start_worker("--workers", 2, "--max-jobs", 4)
    assert worker.wait() == 0
    batch.refresh_from_db()
    assert batch.succeeded == 4
    assert repairing.drift(batch.pk) == {}


@pytest.mark.parametrize("is_requested", [False, True])
def test_after_max_jobs_the_last_job_has_unlimited_time(start_worker, ledger, is_requested):
    worker = start_worker("--workers", 1, "--max-jobs", 1, *([] if is_requested else ["--grace", 0.5]))
    fill(tasks.begin_and_end, 1, ledger.path, 2.0)
    wait_until(lambda: "started 1 jobs and exits" in worker.log)
    if is_requested:
        worker.signal(signal.SIGTERM)  # the first one; only a second one interrupts
    assert worker.wait() == 0
    assert ledger.lines == ["begin", "end"]


def test_a_burst_runs_the_dependents_of_an_rq_job(start_worker, redis, ledger):
    queue = Queue("default", connection=redis)
    first = queue.enqueue("tests.tasks.begin_and_end", ledger.path, 2.0)
    then = queue.enqueue("tests.tasks.append", ledger.path, "then", depends_on=first)
    assert start_worker("--burst").wait() == 0
    assert ledger.lines == ["begin", "end", "then"] and then.get_status() == "finished"


def test_max_jobs_per_child_replaces_the_process(start_worker):
    start_worker("--workers", 1, "--max-jobs-per-child", 1)
    batch = wait_for_end(fill(tasks.pid, 4))
    assert len(set(batch.results())) == 4


def test_a_job_above_the_memory_limit_is_killed_and_fails_at_the_third_loss(start_worker):
    worker = start_worker("--workers", 1, "--max-memory-per-child", MEMORY)
    batch = wait_for_end(fill(tasks.hoard, 1, 2 * MEMORY, 30.0, max_attempts=10))
    job = batch.jobs.get()
    assert (job.status, job.attempts, job.losses) == ("failed", 3, 3)
    assert f"more than --max-memory-per-child ({MEMORY} MB)" in job.error
    assert "was killed in job" in worker.log
    wait_for_end(fill(tasks.ok))


def test_a_large_executor_is_replaced_between_two_jobs(start_worker):
    worker = start_worker("--workers", 1, "--max-memory-per-child", 512)
    with Batch.open() as batch:
        for _ in range(4):  # two exceed three quarters of the limit, three all of it; none is killed
            batch.enqueue(tasks.hoard, 195, keep=True)
    wait_for_end(batch)
    assert batch.status == "succeeded" and 1 < len(set(batch.results())) <= 4
    assert "killed" not in worker.log


def test_a_memory_limit_that_is_too_low_is_refused(start_worker):
    worker = start_worker("--workers", 1, "--max-memory-per-child", 1)
    assert worker.wait() == 1
    assert "--max-memory-per-child 1 is too low: this project uses" in worker.log


def test_a_timeout_replaces_the_process(start_worker):
    start_worker("--workers", 1)
    batch = fill(tasks.overrun, timeout=1)
    wait_for_end(batch)
    wait_for_end(fill(tasks.ok))


def test_a_killed_coordinator_is_replaced(start_worker, redis):
    worker = start_worker("--workers", 1)
    wait_for_end(fill(tasks.ok))
    coordinator = next(pid for pid in worker.children() if is_coordinator(worker, pid))
    os.kill(coordinator, signal.SIGKILL)
    wait_for_end(fill(tasks.ok))
    assert ".coordinator died" in worker.log and "it is replaced" in worker.log


def test_a_coordinator_that_is_killed_during_the_shutdown_is_not_replaced(start_worker, ledger, gate):
    worker = start_worker("--workers", 1)
    fill(tasks.begin_and_end_at, 1, ledger.path, gate.path)
    wait_for_run(ledger)
    worker.signal(signal.SIGTERM)
    wait_until(lambda: "finishes its running jobs" in worker.log)
    os.kill(next(pid for pid in worker.children() if is_coordinator(worker, pid)), signal.SIGKILL)
    wait_until(lambda: "; the worker is shutting down." in worker.log)
    gate.let_through(1)
    assert worker.wait() == 0
    assert ledger.lines == ["begin", "end"]
    assert "it is replaced" not in worker.log


def is_coordinator(worker, pid):
    """It is forked first."""
    return pid == min(worker.children())


def test_the_standby_coordinator_takes_over(start_worker):
    first, second = start_worker("--workers", 1), start_worker("--workers", 1)
    wait_for_end(fill(tasks.ok, 50))
    holder = Lease.objects.get().holder
    stopped, remaining = (first, second) if f".{first.pid}." in holder else (second, first)
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == 0
    wait_for_end(fill(tasks.ok, 50))
    assert f".{remaining.pid}." in Lease.objects.get().holder


def test_rq_jobs_run_with_rqs_scheduler_and_retries(start_worker, redis, ledger):
    start_worker("--workers", 1)
    queue = Queue("default", connection=redis)
    plain = queue.enqueue("tests.tasks.append", ledger.path, "plain")
    later = queue.enqueue_in(timedelta(seconds=1), "tests.tasks.append", ledger.path, "later")
    flaky = queue.enqueue("tests.tasks.flaky", ledger.path + ".runs", 1, retry=Retry(max=1))
    batch = fill(tasks.ok)
    wait_for_end(batch)
    for job in (plain, later, flaky):
        wait_until(lambda j=job: j.get_status() == "finished")
    assert sorted(ledger.lines) == ["later", "plain"]


def test_stop_job_stops_an_rq_job(start_worker, redis, ledger):
    start_worker("--workers", 1)
    wait_until(lambda: executors(redis))
    job = Queue("default", connection=redis).enqueue("tests.tasks.begin_and_end", ledger.path, 60)
    wait_for_run(ledger)
    wait_until(lambda: redis.pubsub_numsub(f"rq:pubsub:{executors(redis)[0].name}")[0][1])
    send_stop_job_command(redis, job.id)
    wait_until(lambda: job.get_status() == "stopped")
    wait_for_end(fill(tasks.ok))


def test_an_rq_job_may_be_stopped_twice(start_worker, redis, ledger, gate):
    """The second command arrives during its callback: RQ would kill the process group of its horse, which has ended."""
    worker = start_worker("--workers", 1)
    wait_until(lambda: executors(redis))
    (name,) = [executor.name for executor in executors(redis)]
    stopped = Callback("tests.tasks.stopped_slowly")
    meta = {"path": ledger.path, "gate": gate.path}
    job = Queue("default", connection=redis).enqueue(
        "tests.tasks.begin_and_end", ledger.path, 60, on_stopped=stopped, meta=meta
    )
    wait_for_run(ledger)
    wait_until(lambda: redis.pubsub_numsub(f"rq:pubsub:{name}")[0][1])
    send_stop_job_command(redis, job.id)
    wait_until(lambda: "stopping" in ledger.lines)
    send_stop_job_command(redis, job.id)
    wait_until(lambda: worker.log.count("received the command stop-job") == 2)
    gate.let_through(1)
    wait_until(lambda: "stopped" in ledger.lines)
    wait_for_end(fill(tasks.ok))
    assert [executor.name for executor in executors(redis)] == [name]


@pytest.mark.slow
def test_after_redis_is_wiped_every_job_ends_and_is_counted_once(start_worker, redis, ledger):
    start_worker("--workers", 2, command=WorkerProcess.SHORT_TIMES)
    with Batch.open() as batch:
        batch.on_finish(tasks.told, ledger.path + ".told")
        batch.map(tasks.append_slowly, range(300), ledger.path)
    wait_until(lambda: len(ledger.lines) > 20)
    redis.flushall()
    wait_for_end(batch, 90)
    assert (batch.status, batch.succeeded) == ("succeeded", 300)
    with open(ledger.path + ".told") as calls:
        assert calls.read().splitlines() == [":succeeded:300/300"]
    assert set(map(int, ledger.lines)) == set(range(300))
    assert batch.callbacks.count() == 1


@pytest.mark.postgresql  # SQLite has one writer at a time
def test_a_job_that_locks_its_batch_delays_no_other_batch(start_worker, ledger, gate):
    start_worker("--workers", 2)
    slow = fill(tasks.hold_batch, 1, ledger.path, gate.path)
    wait_for_run(ledger, "holding")
    wait_for_end(fill(tasks.ok, 20))
    assert ledger.count("released") == 0
    gate.let_through(1)
    wait_for_end(slow)
    assert slow.total == 2


@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_no_job_starts_after_cancel_or_pause(start_worker, ledger, verb):
    start_worker("--workers", 2)
    with Batch.open() as batch:
        for item in range(300):
            batch.enqueue(tasks.begin_and_end_item, ledger.path, item)
    wait_until(lambda: len(ledger.lines) > 10)
    getattr(batch, verb)()
    begun = {line for line in ledger.lines if line.startswith("begin")}
    wait_until(lambda: not Batch.objects.get(pk=batch.pk).in_flight)
    after = {line for line in ledger.lines if line.startswith("begin")} - begun
    assert len(after) <= 2  # taken before the verb, but not at their first line yet
    batch.refresh_from_db()
    assert repairing.drift(batch.pk) == {}
    assert batch.succeeded == len(begun | after) < 300
    if verb == "pause":
        assert batch.pending == 300 - batch.succeeded
        batch.resume()
        assert wait_for_end(batch).status == "succeeded"
        assert len(ledger.lines) == 600
    else:
        assert (batch.status, batch.cancelled) == ("cancelled", 300 - batch.succeeded)


def test_a_child_has_a_database_connection_of_its_own():
    connection.ensure_connection()
    reader, writer = os.pipe()

    def work():
        state = connection.connection is None
        connection.ensure_connection()
        os.write(writer, b"own" if state else b"shared")

    pid = fork(work, "child")
    os.waitpid(pid, 0)
    assert os.read(reader, 10) == b"own"
    assert Batch.objects.count() == 0


@pytest.mark.postgresql
def test_terminated_database_connections_lose_no_job(start_worker, ledger):
    worker = start_worker("--workers", 2)
    with Batch.open() as batch:
        batch.on_finish(tasks.told, ledger.path + ".told")
        batch.map(tasks.append_slowly, range(400), ledger.path)
    for count in (20, 80, 140, 200):
        wait_until(lambda c=count: len(ledger.lines) > c)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
    wait_for_end(batch, 60)
    assert batch.succeeded == 400
    assert sorted(map(int, ledger.lines)) == list(range(400))
    assert "cannot reach the database" in worker.log and "are back" in worker.log


@pytest.mark.postgresql
def test_a_job_gets_a_new_connection_after_a_restart_of_the_database(start_worker):
    start_worker("--workers", 1)
    assert wait_for_end(fill(tasks.observe)).succeeded == 1
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
    assert wait_for_end(fill(tasks.observe)).succeeded == 1


def test_max_jobs_counts_only_jobs_that_have_started(start_worker):
    worker = start_worker("--workers", 4, "--max-jobs", 1)
    wait_until(lambda: "is the active coordinator" in worker.log)
    time.sleep(1.5)  # long enough for idle executors to exit wrongly
    assert worker.process.poll() is None
    batch = fill(tasks.ok, 3)
    assert worker.wait() == 0
    batch.refresh_from_db()
    assert batch.succeeded == 1


def test_a_program_that_a_job_starts_can_be_terminated(start_worker):
    start_worker("--workers", 1)
    batch = wait_for_end(fill(tasks.terminate_a_child))
    assert batch.jobs.get().result == -signal.SIGTERM


def test_a_queue_name_of_a_hundred_wide_characters(start_worker):
    start_worker("--workers", 1)
    wait_for_end(fill(tasks.ok, queue="€" * 100))


def test_a_shutdown_command_to_each_executor_interrupts_no_job(start_worker, redis, ledger):
    worker = start_worker("--workers", 2)
    batch = fill(tasks.begin_and_end, 2, ledger.path, 1.5)
    wait_for_run(ledger, count=2)
    found = wait_until(lambda: len(executors(redis)) == 2 and executors(redis))
    names = [executor.name for executor in found]
    wait_until(lambda: all(redis.pubsub_numsub(f"rq:pubsub:{name}")[0][1] for name in names))
    redis.publish(f"rq:pubsub:{names[0]}", "not a command")
    for name in names:
        send_shutdown_command(redis, name)
    assert worker.wait() == 0
    assert ledger.count("end") == 2
    wait_for_end(batch, 0.1)


def test_invalid_options_are_refused(start_worker):
    for options, words in [
        (["--workers", -1], "--workers must be 0 or more"),
        (["--max-jobs", 0], "--max-jobs must be 1 or more"),
        (["--max-jobs", 1, "--workers", 0], "--max-jobs needs --workers"),
    ]:
        worker = start_worker(*options)
        assert worker.wait() == 1
        assert words in worker.log


@pytest.mark.parametrize("place", ["inside the block", "after the seal"])
def test_the_child_batch_of_a_killed_attempt_is_cancelled(start_worker, ledger, place):
    with Batch.open(max_attempts=2) as batch:
        batch.on_finish(tasks.told, ledger.path, "finish")
        batch.enqueue(tasks.killed_with_a_child, ledger.path, place)
    start_worker("--workers", "2")
    wait_until(lambda: "finish:succeeded:1/1" in ledger.lines, 60)
    orphan, child = Batch.objects.filter(description="child").order_by("pk")
    wait_until(lambda: Batch.objects.get(pk=orphan.pk).has_ended)
    orphan.refresh_from_db()
    assert (orphan.status, orphan.is_awaited, child.parent.batch_id) == ("cancelled", False, batch.pk)
    assert Batch.objects.get(pk=child.pk).status == "succeeded"
    assert len(batch.jobs.get().result) == 20
    # Jobs of the orphan that were queued when its parent died may have run; the others did not.
    assert ledger.count("run") == 2 and orphan.succeeded + orphan.cancelled == 20


def test_a_worker_can_shut_down_while_others_are_busy(start_worker, tmp_path):
    worker = start_worker("--workers", 1)
    wait_until(lambda: "is the active coordinator" in worker.log)
    other = WorkerProcess(tmp_path / "other.log", "--workers", 2)
    try:
        batch = fill(tasks.ok)
        wait_for_end(batch)
        with Batch.open() as batch:
            batch.map(tasks.sleepy, [0.001] * 20_000)
        wait_until(lambda: Batch.objects.get(pk=batch.pk).succeeded > 500)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert Batch.objects.get(pk=batch.pk).pending
        wait_until(lambda: "is the active coordinator" in other.log)
        batch.cancel()
    finally:
        other.stop()
