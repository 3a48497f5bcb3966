"""`drain()`: batches in the tests of a project, inside the transaction of a test case, without Redis."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from django.db import connection
from django.test import TestCase

from django_batches import Batch
from django_batches.execution.runner import alarm
from django_batches.testing import drain
from django_batches.transitions import repairing

from . import tasks

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_redis(monkeypatch):
    def away(**options):
        raise AssertionError("drain() must not talk to Redis")

    monkeypatch.setattr("django_batches.transport.client.client", away)


class InsideATestCase(TestCase):
    def test_a_batch_runs_with_its_callbacks(self):
        with Batch.open() as batch:
            batch.on_success(tasks.whose_callback)
            batch.map(tasks.ok, range(3))
        assert drain() == 4
        batch.refresh_from_db()
        assert batch.status == "succeeded"
        assert list(batch.results()) == [0, 1, 2]
        assert batch.result == [str(batch.pk), str(batch.pk), "success"]
        assert connection.in_atomic_block


def test_nothing_to_do_is_no_run():
    assert drain() == 0


def test_siblings_added_by_a_job_run_too(ledger):
    with Batch.open() as batch:
        batch.enqueue(tasks.grow, ledger.path, 5)
    assert drain() == 6
    batch.refresh_from_db()
    assert batch.succeeded == 6 and repairing.drift(batch.pk) == {}


def test_attempts_run_at_once_without_their_backoff(ledger):
    with Batch.open(max_attempts=3, backoff=3600) as batch:
        batch.enqueue(tasks.flaky, ledger.path, 2)
    assert drain() == 3
    assert batch.jobs.get().attempts == 3


def test_the_exception_of_a_job_that_fails_for_good_is_raised_once_it_is_recorded():
    with Batch.open(max_attempts=2) as batch:
        batch.enqueue(tasks.boom, "no")
    with pytest.raises(ValueError, match="no"):
        drain()
    batch.refresh_from_db()
    assert batch.status == "failed"


def test_failures_may_be_looked_at_instead():
    with Batch.open() as batch:
        batch.on_finish(tasks.ok_callback)
        batch.enqueue(tasks.boom)
        batch.enqueue(tasks.ok)
    assert drain(raise_failures=False) == 3
    batch.refresh_from_db()
    assert (batch.failed, batch.succeeded) == (1, 1)
    assert batch.retry_failed() == 1
    assert drain(raise_failures=False) == 2


def test_arguments_and_results_make_the_round_trip_through_json():
    with Batch.open() as batch:
        batch.enqueue(tasks.ok, (1, 2))
        batch.enqueue(tasks.returns, "object")
    drain(raise_failures=False)
    first, second = batch.jobs.all()
    assert first.result == [1, 2]
    assert second.status == "failed" and "cannot be passed as JSON" in second.error


def test_a_paused_batch_is_held():
    with Batch.open() as batch:
        batch.map(tasks.ok, range(3))
    batch.pause()
    assert drain() == 0
    batch.resume()
    assert drain() == 3


def test_a_job_that_cancels_its_batch_is_the_last(ledger):
    with Batch.open() as batch:
        batch.enqueue(tasks.cancel_own_batch)
        batch.map(tasks.append_item, range(3), ledger.path)
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.succeeded, batch.cancelled) == ("cancelled", 1, 3)
    assert ledger.lines == []


def test_drain_stops_if_jobs_add_jobs_for_ever():
    with Batch.open() as batch:
        batch.enqueue(tasks.add_another)
    with pytest.raises(RuntimeError, match="for ever"):
        drain(limit=20)


def test_a_job_in_another_thread_has_no_timeout():
    """Signals belong to the main thread."""
    ran = []

    def work():
        with alarm(1):
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]


def test_an_alarm_of_other_code_continues_afterwards(drain_batches):
    """pytest-timeout has one."""
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *args: rung.append(True))
    signal.setitimer(signal.ITIMER_REAL, 30)
    try:
        with Batch.open() as batch:
            batch.enqueue(tasks.ok)
        assert drain_batches() == 1
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        assert 0 < left < 30
        signal.raise_signal(signal.SIGALRM)
        assert rung == [True]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_drain_runs_the_children_of_a_waiting_job(drain_batches):
    with Batch.open() as batch:
        batch.on_success(tasks.whose_callback)
        batch.enqueue(tasks.sort, [2, 1])
    assert drain_batches() == 5
    batch.refresh_from_db()
    assert list(batch.results()) == [[1, 2]]


def test_pytest_finds_the_fixture_in_another_project(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it(drain_batches):\n    assert drain_batches() == 0\n")
    made = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ds", "tests.settings", str(tmp_path)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "DATA_DIR": str(tmp_path), "DATABASE_URL": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "1 passed" in made.stdout, made.stdout + made.stderr


def test_the_next_drain_runs_the_jobs_that_were_left_after_a_failure():
    with Batch.open() as batch:
        batch.on_finish(tasks.ok_callback)
        batch.enqueue(tasks.boom, "no")
        batch.map(tasks.ok, range(2))
    with pytest.raises(ValueError, match="no"):
        drain()
    assert drain() == 3
    batch.refresh_from_db()
    assert (batch.status, batch.succeeded, batch.callbacks.get().status) == ("failed", 2, "succeeded")
    assert repairing.drift(batch.pk) == {}
