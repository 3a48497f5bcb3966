"""The health check, for containers: one test per check, with the failure that it detects."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
from django.db import Error, connection
from django.utils import timezone

from django_batches import Batch, database
from django_batches.models import Lease
from django_batches.monitoring import health
from django_batches.monitoring.health import Health

from .. import tasks
from ..admin_data import batch_of, batchworker_is_there, new_callback
from ..commanding import batches
from ..processes import ROOT, wait_until
from ..road import claim, outcome_of
from .test_diagnosis import at

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def healthy(redis, keys):
    """There is an active coordinator, and a worker listens on the default queue."""
    batchworker_is_there()
    redis.sadd(keys.workers_of("default"), keys.worker("one"))
    redis.hset(keys.worker("one"), "birth", "now")


def failing(**options):
    """The names of the checks that fail."""
    return [check.name for check in Health(**options).check() if not check.is_ok]


def late(job, seconds=120):
    database.jobs().filter(pk=job.pk).update(created_at=timezone.now() - timedelta(seconds=seconds))


def test_every_check_passes_with_and_without_work():
    assert failing() == []
    batch_of(running=1, created=5), batch_of(succeeded=3), batch_of(created=1, is_paused=True, queue="unused")
    assert failing() == []
    result = batches("health")
    assert (
        result.code == 0
        and len(result.out.splitlines()) == len(Health.NAMES)
        and "host is the active coordinator" in result.out
    )


def test_redis_is_down(settings):
    at("redis://127.0.0.1:1/1", settings)
    result = batches("health")
    assert result.code == 1 and "Redis does not answer (ConnectionError" in result.out
    assert [check["name"] for check in batches("health", "--json").json["checks"] if not check["is_ok"]] == [
        "redis", "stream",
    ]  # fmt: skip


def test_if_the_database_is_down_nothing_else_is_checked():
    environment = os.environ | {
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }
    environment.pop("TEST_DATABASE_NAME", None)
    command = [sys.executable, "manage.py", "batches", "health", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout.count('"name"') == 1
    assert "The database does not answer (OperationalError" in done.stdout


def test_missing_tables():
    environment = os.environ | {"TEST_DATABASE_NAME": _empty_database(), "DJANGO_SETTINGS_MODULE": "tests.settings"}
    command = [sys.executable, "manage.py", "batches", "health"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Tables are missing: run manage.py migrate (" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_missing_column():
    for statement, error in (("SELECT nothing_like_it FROM {}", True), ("SELECT FROM WHERE {}", False)):
        with pytest.raises(Error) as raised:
            database.execute(statement.format(database.BATCH), [])
        assert database.dialect().is_missing_table(raised.value) == error


def _empty_database():
    return "postgres" if connection.vendor == "postgresql" else ":memory:"


def test_the_active_coordinator_has_another_namespace():
    Lease.objects.update(namespace="elsewhere")
    (check,) = [check for check in Health().check() if not check.is_ok]
    assert check.name == "coordinator" and "namespace elsewhere" in check.text and "NAMESPACE" in check.text


def test_there_is_no_active_coordinator():
    batchworker_is_there(-60)
    assert failing() == ["coordinator"]
    Lease.objects.all().delete()
    assert failing() == ["coordinator"]


def test_a_queue_with_work_has_no_worker():
    batch_of("Images", created=3, queue="images")
    assert failing() == ["workers", "stuck"]
    assert failing(threshold=timedelta(hours=1)) == ["workers"]
    result = batches("health").out
    assert "batchworker images" in result and "1 batch is stuck: Images (" in result


def test_outcomes_have_not_been_applied(redis, keys):
    with Batch.open() as batch:
        batch.map(tasks.ok, range(2))
    emitted = (timezone.now() - timedelta(minutes=5)).timestamp()
    for index, job in enumerate(claim(batch)):
        redis.xadd(keys.outcomes, {"o": outcome_of(job).dumps()}, id=f"{int(emitted * 1000)}-{index + 1}")
    assert failing() == ["stream"]
    assert "2 outcomes have not been applied yet, the oldest for 5 min" in batches("health").out
    assert failing(threshold=timedelta(minutes=10)) == []


@pytest.mark.parametrize("kind", ["callback", "scheduled"])
def test_a_due_row_was_forgotten(kind, monkeypatch):
    monkeypatch.setattr(health, "SECOND_LOOK", 0.01)
    if kind == "callback":
        late(new_callback(batch_of(succeeded=1, open_callbacks=1)))
    else:
        batch = batch_of(scheduled=2)
        database.jobs().filter(batch=batch).update(due_at=timezone.now() - timedelta(minutes=2))
    assert failing() == ["due"]
    assert failing(threshold=timedelta(minutes=5)) == []


def test_a_callback_that_was_just_retried_is_not_forgotten(monkeypatch):
    callback = new_callback(batch_of(succeeded=1, open_callbacks=1))
    late(callback, 86_400)
    monkeypatch.setattr(health.time, "sleep", lambda seconds: claim(callbacks=True))
    assert failing() == []


def test_a_job_scheduled_for_later_is_not_forgotten():
    batch_of(scheduled=3)
    assert failing() == []


def test_single_checks_can_be_selected():
    Lease.objects.all().delete()
    assert batches("health", "--only", "redis", "--only", "database").code == 0
    assert [check["name"] for check in batches("health", "--only", "coordinator", "--json").json["checks"]] == [
        "coordinator"
    ]
    assert batches("health", "--threshold", "-1").code == 1


def test_every_check_passes_once_a_worker_starts(start_worker, redis):
    """With real processes."""
    redis.flushdb()
    Lease.objects.all().delete()
    batch = batch_of(created=2)
    assert failing() == ["coordinator", "workers", "stuck"]
    start_worker("--workers", 1)
    wait_until(lambda: not failing())
    wait_until(lambda: Batch.objects.get(pk=batch.pk).finished_at)
    assert failing() == []
