"""Together with RQ: batch jobs under `rq worker` and django-rq's `rqworker`, pickle and JSON, and RQ's pages."""

import os
import subprocess
import sys
import time

import pytest
from django.db import OperationalError, connection
from django.test import override_settings
from redis.exceptions import ConnectionError
from rq import Queue, SimpleWorker, Worker

from django_batches import Batch
from django_batches.execution import runner
from django_batches.transitions import repairing
from django_batches.worker import rq_jobs

from .. import tasks
from ..processes import ROOT, wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def fill(count=3, **options):
    with Batch.open(**options) as batch:
        batch.on_success(tasks.whose_callback)
        batch.map(tasks.ok, range(count))
    return batch


def drive(road, worker):
    """Coordinates here, and runs the jobs in `worker`."""
    for _ in range(20):
        road.dispatch()
        worker.work(burst=True, logging_level="WARNING")
        while road.record():
            pass


@pytest.mark.parametrize("serializer", ["pickle", "json"])
@pytest.mark.parametrize("worker_class", [SimpleWorker, Worker])
def test_a_batch_runs_under_rqs_own_workers(road, redis, serializer, worker_class):
    given = {"CACHE": "batches", "NAMESPACE": "tests", "RQ_SERIALIZER": serializer}
    with override_settings(DJANGO_BATCHES=given):
        batch = fill(max_attempts=2)
        connection.close()  # the horse is a fork
        drive(road, worker_class(["default"], connection=redis, serializer=serializer))
    batch.refresh_from_db()
    assert repairing.drift(batch.pk) == {}
    assert (batch.status, batch.succeeded, batch.open_callbacks) == ("succeeded", 3, 0)
    assert batch.result == [str(batch.pk), str(batch.pk), "success"]
    assert redis.keys("rq:job:*") == []


def test_a_failing_job_is_retried_and_rq_keeps_no_failed_job(road, redis, ledger):
    with Batch.open(max_attempts=2) as batch:
        batch.enqueue(tasks.flaky, ledger.path, 1)
        batch.enqueue(tasks.boom)
    drive(road, SimpleWorker(["default"], connection=redis))
    batch.refresh_from_db()
    assert (batch.succeeded, batch.failed) == (1, 1)
    assert Queue("default", connection=redis).failed_job_registry.count == 0


def test_a_success_just_before_rqs_own_timeout_is_reported(road, redis, monkeypatch):
    """RQ's timer starts first: before its work horse calls the function."""
    check, report = runner._is_current, runner._report
    monkeypatch.setattr(runner, "_is_current", lambda message: time.sleep(2.6) or check(message))
    monkeypatch.setattr(runner, "_report", lambda *args: time.sleep(0.2) or report(*args))
    with Batch.open(timeout=3, max_attempts=2) as batch:
        batch.enqueue(tasks.sleepy, 0.8)
    connection.close()
    drive(road, Worker(["default"], connection=redis))
    job = batch.jobs.get()
    assert (job.status, job.attempts, job.losses, job.error) == ("succeeded", 1, 0, "")


def test_a_timeout_is_reported_as_a_timeout(road, redis):
    with Batch.open(timeout=1) as batch:
        batch.enqueue(tasks.overrun)
    connection.close()
    drive(road, Worker(["default"], connection=redis))
    job = batch.jobs.get()
    assert (job.status, job.attempts, job.losses) == ("failed", 1, 0) and "JobTimeoutException" in job.error_type
    assert redis.keys("rq:job:*") == []


def test_the_reconciler_finds_a_killed_work_horse(road, redis):
    with Batch.open() as batch:
        batch.enqueue(tasks.kill_self)
    connection.close()
    drive(road, Worker(["default"], connection=redis))
    assert road.reconciler.look() == 1
    assert road.reconciler.act() == 1
    batch.refresh_from_db()
    assert batch.status == "failed"
    job = batch.jobs.get()
    assert "WorkerKilled" in job.error and batch.created_at < job.started_at < job.finished_at
    assert redis.keys("rq:job:*") == []


def test_a_plain_worker_starts_no_job_of_a_cancelled_batch(road, redis, ledger):
    with Batch.open() as batch:
        batch.on_finish(tasks.told, ledger.path)
        batch.map(tasks.append_item, range(3), ledger.path)
    road.dispatch()
    batch.cancel()
    drive(road, SimpleWorker(["default"], connection=redis))
    batch.refresh_from_db()
    assert (batch.status, batch.cancelled) == ("cancelled", 3)
    assert ledger.lines == [":cancelled:0/3"]


def test_a_requeue_in_rq_does_not_run_an_ended_job(road, redis, ledger):
    with Batch.open() as batch:
        batch.enqueue(tasks.append, ledger.path, "run")
    road.dispatch()
    (rq_id,) = redis.lrange("rq:queue:default", 0, -1)
    dump = redis.dump(b"rq:job:" + rq_id)
    drive(road, SimpleWorker(["default"], connection=redis))
    redis.restore(b"rq:job:" + rq_id, 0, dump)
    redis.rpush("rq:queue:default", rq_id)
    SimpleWorker(["default"], connection=redis).work(burst=True)
    assert ledger.lines == ["run"]


def test_the_outcome_goes_to_the_database_if_redis_is_away(road, redis, monkeypatch):
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
    road.dispatch()
    real = type(redis).xadd

    def away(self, name, *args, **kwargs):
        if name.endswith("outcomes"):
            raise ConnectionError
        return real(self, name, *args, **kwargs)

    monkeypatch.setattr(type(redis), "xadd", away)
    SimpleWorker(["default"], connection=redis).work(burst=True)
    batch.refresh_from_db()
    assert (batch.status, batch.succeeded) == ("succeeded", 1)
    assert repairing.drift(batch.pk) == {}


def test_a_job_whose_row_cannot_be_read_neither_starts_nor_fails(road, redis, monkeypatch, ledger):
    with Batch.open() as batch:
        batch.enqueue(tasks.append, ledger.path, "run")
    road.dispatch()

    def away(message):
        raise OperationalError("the database is away")

    monkeypatch.setattr(runner, "_is_current", away)
    SimpleWorker(["default"], connection=redis).work(burst=True)
    assert ledger.lines == []
    monkeypatch.undo()
    road.record()
    job = batch.jobs.get()
    assert (job.status, job.attempts, job.losses) == ("created", 0, 0)
    assert job.error == "Its row could not be read before its start: the database is away"
    drive(road, SimpleWorker(["default"], connection=redis))
    assert ledger.lines == ["run"]


@pytest.mark.slow
def test_the_command_rq_worker_and_django_rqs_rqworker_run_batches(start_worker, redis):
    start_worker("--workers", 0)  # only coordinates
    for command in (
        [sys.executable, "-m", "rq.cli", "worker", "--burst", "--url", redis_url(redis), "default"],
        [sys.executable, "manage.py", "rqworker", "default", "--burst"],
    ):
        batch = fill()
        wait_until(lambda: redis.llen("rq:queue:default") == 3)
        environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
        }
        for _ in range(2):  # the jobs, and then the callback
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            wait_until(lambda b=batch: b.callbacks.exists())
            wait_until(lambda b=batch: not b.callbacks.filter(status="created").exists())
        assert batch.wait(10), done.stderr
        assert batch.status == "succeeded"


def test_rq_info_and_django_rqs_page_show_our_workers_and_jobs(start_worker, redis, ledger, admin_client):
    start_worker("--workers", 1, "--name", "shop")
    with Batch.open() as batch:
        batch.enqueue(tasks.begin_and_end, ledger.path, 60)
        batch.enqueue(tasks.ok)
    wait_until(lambda: ledger.lines and Worker.all(connection=redis))
    info = subprocess.run(
        [sys.executable, "-m", "rq.cli", "info", "--url", redis_url(redis)], capture_output=True, text=True, timeout=30
    )
    assert info.returncode == 0 and "1 workers" in info.stdout and "default" in info.stdout, info.stdout
    (job,) = Queue("default", connection=redis).jobs
    assert job.func_name == "django_batches.execution.run"
    for path in ("/django-rq/", "/django-rq/queues/0/", "/django-rq/workers/0/", f"/django-rq/queues/0/{job.id}/"):
        response = admin_client.get(path)
        assert response.status_code == 200, path


def redis_url(redis):
    found = redis.connection_pool.connection_kwargs
    return f"redis://{found['host']}:{found['port']}/{found['db']}"


def test_a_work_horse_survives_a_failed_heartbeat(redis, monkeypatch, caplog):
    def away(self, job, execution):
        raise ConnectionError

    monkeypatch.setattr(Worker, "maintain_heartbeats", away)
    job = Queue("default", connection=redis).enqueue("tests.tasks.ok")
    rq_jobs._ForkingWorker(["default"], connection=redis).maintain_heartbeats(job, None)
    assert "cannot send its heartbeat" in caplog.text
