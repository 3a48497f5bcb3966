"""While Redis is away: a batch is created with the database alone, and runs when Redis is back."""

import contextlib
import signal
import socket
import subprocess
import time

import pytest
from django.db import transaction
from django.test import override_settings

from django_batches import Batch
from django_batches.transitions import repairing
from django_batches.transport import client
from example_project.servers import free_port, redis_program

from .. import tasks
from ..processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

PATIENCE = 6.0
"""Seconds: longer than a wake-up takes to give up, and shorter than redis-py's own ten retries (about 9 s)."""
WAKE_TIMEOUT = client.WAKE_TIMEOUT


@pytest.fixture(autouse=True)
def real_time_out(fresh_wake_client, monkeypatch):
    monkeypatch.setattr(client, "WAKE_TIMEOUT", WAKE_TIMEOUT)


@contextlib.contextmanager
def redis_at(port):
    """Settings with Redis at this port."""
    caches_ = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "batches": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"redis://127.0.0.1:{port}/15"},
    }
    with override_settings(CACHES=caches_):
        client._wake_client = None
        yield
    client._wake_client = None


@pytest.fixture
def refusing():
    with redis_at(free_port()):
        yield


@pytest.fixture
def swallowing():
    """A server that accepts connections and never answers, like one that is stopped (SIGSTOP)."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        with redis_at(server.getsockname()[1]):
            yield


@pytest.mark.parametrize("kind", ["refusing", "swallowing"])
@pytest.mark.parametrize("in_transaction", [True, False])
def test_a_batch_is_created_without_redis_and_without_waiting_for_it(kind, in_transaction, request):
    request.getfixturevalue(kind)
    begun = time.monotonic()
    with transaction.atomic() if in_transaction else contextlib.nullcontext(), Batch.open() as batch:
        batch.map(tasks.ok, range(10))
    assert time.monotonic() - begun < PATIENCE
    assert Batch.objects.get().total == 10
    assert batch.cancel() == 10 and batch.status == "cancelled"


def test_after_a_failed_wake_up_no_further_ones_are_sent_for_a_while(refusing, monkeypatch):
    made = []
    real = client.client
    monkeypatch.setattr(client, "client", lambda **options: (made.append(options), real(**options))[1])
    for _ in range(5):
        client.wake_coordinator()
    assert len(made) == 1
    assert made[0]["socket_timeout"] == made[0]["socket_connect_timeout"] == client.WAKE_TIMEOUT <= 0.2
    assert made[0]["retry"]._retries == 0  # redis-py 5 has no public name for it
    client._silent_until = 0.0
    client.wake_coordinator()
    assert client._silent_until > time.monotonic()


def test_later_commit_hooks_run_after_a_failed_wake_up(refusing):
    ran = []
    with transaction.atomic():
        with Batch.open() as batch:
            batch.enqueue(tasks.ok)
        transaction.on_commit(lambda: ran.append(True))
    assert ran == [True]


class Server:
    """A Redis server that the test can stop and start."""

    def __init__(self, folder):
        self.port, self.folder, self.process = free_port(), folder, None
        self.start()

    def start(self):
        command = [redis_program(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self.answers)

    def answers(self):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def server(tmp_path):
    server = Server(str(tmp_path))
    with redis_at(server.port):
        yield server
    server.stop()


def test_what_was_created_while_redis_was_down_runs_when_it_is_back(server, start_worker, ledger):
    worker = start_worker("--workers", 1, redis_url=f"redis://127.0.0.1:{server.port}/15")
    with Batch.open() as before:
        before.enqueue(tasks.ok)
    assert before.wait(45)
    server.stop()
    with Batch.open() as during:
        during.on_finish(tasks.told, ledger.path)
        during.map(tasks.append_item, range(10), ledger.path)
    assert not during.wait(1)
    wait_until(lambda: "cannot reach Redis" in worker.log)
    server.start()
    assert during.wait(45), worker.log
    assert repairing.drift(during.pk) == {}
    assert ledger.lines == [*map(str, range(10)), ":succeeded:10/10"]
    assert worker.process.poll() is None
    coordinator = [line for line in worker.log.splitlines() if "coordinator" in line]
    assert len([line for line in coordinator if "cannot reach Redis" in line]) == 1
    assert len([line for line in coordinator if "are back" in line]) == 1


def test_a_result_computed_while_redis_is_down_is_not_lost(server, start_worker, ledger, gate):
    start_worker("--workers", 1, redis_url=f"redis://127.0.0.1:{server.port}/15")
    with Batch.open() as batch:
        batch.enqueue(tasks.begin_and_end_at, ledger.path, gate.path)
    wait_until(lambda: ledger.lines)
    server.stop()
    gate.let_through(1)
    assert batch.wait(60)  # the executor tells the database itself
    server.start()
    assert batch.succeeded == 1 and ledger.lines == ["begin", "end"]
    with Batch.open() as after:
        after.enqueue(tasks.ok)
    assert after.wait(45)


def test_a_worker_shuts_down_while_redis_is_away(server, start_worker):
    worker = start_worker("--workers", 1, redis_url=f"redis://127.0.0.1:{server.port}/15")
    wait_until(lambda: "is the active coordinator" in worker.log)
    server.stop()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    server.start()


def test_nothing_is_lost_while_redis_is_frozen(server, start_worker, ledger):
    start_worker("--workers", 2, redis_url=f"redis://127.0.0.1:{server.port}/15")
    with Batch.open() as batch:
        batch.map(tasks.append_slowly, range(200), ledger.path)
    wait_until(lambda: len(ledger.lines) > 20)
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(3)  # longer than the supervisor's time-out
    server.process.send_signal(signal.SIGCONT)
    assert batch.wait(60)
    assert repairing.drift(batch.pk) == {}
    assert sorted(map(int, ledger.lines)) == list(range(200))
