"""Is all well: for containers. One test per question, each with the answer that is no."""

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
def all_is_well(redis, keys):
    """Somebody keeps the books, and a worker works on the default queue."""
    batchworker_is_there()
    redis.sadd(keys.workers_of("default"), keys.worker("one"))
    redis.hset(keys.worker("one"), "birth", "now")


def wrong(**options):
    """The names of the questions that are answered with no."""
    return [check.name for check in Health(**options).check() if not check.is_ok]


def late(job, seconds=120):
    database.jobs().filter(pk=job.pk).update(created_at=timezone.now() - timedelta(seconds=seconds))


def test_all_is_well_with_work_and_without():
    assert wrong() == []
    batch_of(running=1, created=5), batch_of(succeeded=3), batch_of(created=1, is_paused=True, queue="nobody")
    assert wrong() == []
    said = batches("health")
    assert said.code == 0 and len(said.out.splitlines()) == len(Health.NAMES) and "host keeps the books" in said.out


def test_redis_is_away(settings):
    at("redis://127.0.0.1:1/1", settings)
    said = batches("health")
    assert said.code == 1 and "Redis does not answer (ConnectionError" in said.out
    assert [check["name"] for check in batches("health", "--json").json["checks"] if not check["is_ok"]] == [
        "redis", "stream",
    ]  # fmt: skip


def test_the_database_is_away_and_nothing_else_is_asked():
    environment = os.environ | {
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }
    environment.pop("TEST_DATABASE_NAME", None)
    command = [sys.executable, "manage.py", "batches", "health", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout.count('"name"') == 1
    assert "The database does not answer (OperationalError" in done.stdout


def test_the_tables_are_not_there():
    environment = os.environ | {"TEST_DATABASE_NAME": _empty_database(), "DJANGO_SETTINGS_MODULE": "tests.settings"}
    command = [sys.executable, "manage.py", "batches", "health"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Tables are missing: run manage.py migrate (" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_column_is_not_there():
    for statement, error in (("SELECT nothing_like_it FROM {}", True), ("SELECT FROM WHERE {}", False)):
        with pytest.raises(Error) as raised:
            database.execute(statement.format(database.BATCH), [])
        assert database.is_missing_table(raised.value) == error


def _empty_database():
    return "postgres" if connection.vendor == "postgresql" else ":memory:"


def test_the_books_are_kept_with_another_namespace():
    Lease.objects.update(namespace="elsewhere")
    (check,) = [check for check in Health().check() if not check.is_ok]
    assert check.name == "books" and "namespace elsewhere" in check.text and "NAMESPACE" in check.text


def test_nobody_keeps_the_books():
    batchworker_is_there(-60)
    assert wrong() == ["books"]
    Lease.objects.all().delete()
    assert wrong() == ["books"]


def test_a_queue_with_work_has_no_worker():
    batch_of("Images", created=3, queue="images")
    assert wrong() == ["workers", "stuck"]
    assert wrong(threshold=timedelta(hours=1)) == ["workers"]
    said = batches("health").out
    assert "batchworker images" in said and "1 batch does not move: Images (" in said


def test_outcomes_are_not_applied(redis, keys):
    with Batch.open() as batch:
        batch.map(tasks.ok, range(2))
    emitted = (timezone.now() - timedelta(minutes=5)).timestamp()
    for index, job in enumerate(claim(batch)):
        redis.xadd(keys.outcomes, {"o": outcome_of(job).dumps()}, id=f"{int(emitted * 1000)}-{index + 1}")
    assert wrong() == ["stream"]
    assert "2 outcomes wait to be applied, the oldest for 5 min" in batches("health").out
    assert wrong(threshold=timedelta(minutes=10)) == []


@pytest.mark.parametrize("kind", ["callback", "scheduled"])
def test_what_is_due_was_forgotten(kind, monkeypatch):
    monkeypatch.setattr(health, "SECOND_LOOK", 0.01)
    if kind == "callback":
        late(new_callback(batch_of(succeeded=1, open_callbacks=1)))
    else:
        batch = batch_of(scheduled=2)
        database.jobs().filter(batch=batch).update(due_at=timezone.now() - timedelta(minutes=2))
    assert wrong() == ["due"]
    assert wrong(threshold=timedelta(minutes=5)) == []


def test_a_callback_that_is_old_because_it_was_retried_is_not_forgotten(monkeypatch):
    callback = new_callback(batch_of(succeeded=1, open_callbacks=1))
    late(callback, 86_400)
    monkeypatch.setattr(health.time, "sleep", lambda seconds: claim(callbacks=True))
    assert wrong() == []


def test_scheduled_for_later_is_not_forgotten():
    batch_of(scheduled=3)
    assert wrong() == []


def test_asked_for_one_thing_alone():
    Lease.objects.all().delete()
    assert batches("health", "--only", "redis", "--only", "database").code == 0
    assert [check["name"] for check in batches("health", "--only", "books", "--json").json["checks"]] == ["books"]
    assert batches("health", "--threshold", "-1").code == 1


def test_a_worker_makes_it_well(start_worker, redis):
    """The real thing: not well, a batchworker starts, well."""
    redis.flushdb()
    Lease.objects.all().delete()
    batch = batch_of(created=2)
    assert wrong() == ["books", "workers", "stuck"]
    start_worker("--workers", 1)
    wait_until(lambda: not wrong())
    wait_until(lambda: Batch.objects.get(pk=batch.pk).finished_at)
    assert wrong() == []
