import os

import pytest
from django.conf import settings

from django_batches.models.context import open_block
from django_batches.transitions import creating
from django_batches.transport import client as transport, probe
from django_batches.transport.client import Keys, client

from .processes import WorkerProcess
from .road import Road

PATIENCE = 10.0
"""Seconds for what is asked of a Redis once: those of the product are for people who wait for a page."""


@pytest.fixture(autouse=True)
def fresh_wake_client(monkeypatch):
    """A poke that failed in one test must not silence those of the next, nor one that a busy machine holds up."""
    transport._wake_client, transport._silent_until = None, 0.0
    monkeypatch.setattr(transport, "WAKE_TIMEOUT", PATIENCE)


@pytest.fixture(autouse=True)
def no_open_block():
    """A block that one test never left must not take the Tasks that the next one enqueues."""
    open_block.set(None)


@pytest.fixture
def redis(monkeypatch):
    """The Redis of the tests, emptied."""
    monkeypatch.setattr(probe, "TIMEOUT", PATIENCE)
    redis = client()
    redis.flushdb()
    yield redis
    redis.connection_pool.disconnect()


@pytest.fixture
def keys():
    return Keys()


@pytest.fixture
def road(transactional_db, redis):
    """The whole road in this process: coordinator and one executor, by hand."""
    road = Road()
    yield road
    road.close()


@pytest.fixture(params=[0, creating.FEW], ids=["many rows", "a few rows"])
def way_to_write(request, monkeypatch):
    """Jobs are written with their count in two statements, or in one."""
    monkeypatch.setattr(creating, "FEW", request.param)


@pytest.fixture
def start_worker(transactional_db, redis, tmp_path):
    """Starts real `manage.py batchworker` processes, and ends them."""
    started = []

    def start(*options, **kwargs):
        worker = WorkerProcess(tmp_path / "worker.log", *options, **kwargs)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.stop()
        print(worker.log)


@pytest.fixture
def ledger(tmp_path):
    """A file that jobs write to, outside of Redis and the database."""
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def asked_once(monkeypatch):
    """Fails where Redis is asked again after a pause: whoever looks at a page would wait for that."""
    pauses = []
    monkeypatch.setattr("redis.retry.sleep", pauses.append)
    yield
    assert pauses == []


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path / "gate")
    yield gate
    os.close(gate.pipe)


class Gate:
    """Lets jobs that run `tests.tasks.pass_gate` end, so many at a time."""

    def __init__(self, path):
        os.mkfifo(path)
        self.path = str(path)
        # For reading as well: a job that opens the pipe never waits for a writer, nor reads the end of the file.
        self.pipe = os.open(path, os.O_RDWR)

    def let_through(self, count):
        os.write(self.pipe, b"." * count)


class Ledger:
    def __init__(self, path):
        self.path = str(path)

    @property
    def lines(self):
        try:
            with open(self.path) as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def count(self, text):
        return self.lines.count(text)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "tests/chaos/" in item.nodeid:
            item.add_marker("slow")
        if "tests/browser/" in item.nodeid:
            item.add_marker("once")  # the queries behind the pages are tested on both databases in tests/admin
    unwanted = "once" if "postgresql" in settings.DATABASES["default"]["ENGINE"] else "postgresql"
    deselected = [item for item in items if item.get_closest_marker(unwanted)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]
