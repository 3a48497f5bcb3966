"""Shared by the benchmarks of django_batches alone: an empty database, a batchworker, measurements of its processes."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"

import django

django.setup()

from django.db import connection
from redis import Redis

from benchmarks import jobs as tasks
from benchmarks.contend import DONE, IDLE, PROCESSES, REDIS_URL, WARM_UP, empty_database
from django_batches import Batch
from django_batches.models import BatchJob
from example_project.processes import exit_on_signals, running
from example_project.shop.models import Product

__all__ = [
    "Batch",
    "BatchJob",
    "Product",
    "Watch",
    "Worker",
    "batchworker",
    "dump",
    "has_ended",
    "peak",
    "processor_seconds",
    "redis",
    "run",
    "tasks",
    "wait_until",
]

redis = Redis.from_url(REDIS_URL, socket_timeout=None)


@contextmanager
def batchworker() -> Iterator["Worker"]:
    """Runs a warmed-up batchworker on empty servers."""
    exit_on_signals()
    redis.flushall()
    empty_database()
    with running([sys.executable, "manage.py", "batchworker", "--workers", PROCESSES], stdout=sys.stderr) as process:
        run(tasks.noop, [(index,) for index in range(WARM_UP)])
        time.sleep(IDLE)
        yield Worker(process.pid)


@contextmanager
def dump() -> Iterator[None]:
    """Keeps a snapshot open in the block, as pg_dump does, so that no old row version can be removed."""
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute(f"SELECT COUNT(*) FROM {BatchJob._meta.db_table}")
        yield
    finally:
        other.close()


def run(func: Callable[..., object], calls: object, callback: Callable[..., object] = tasks.done) -> tuple[float, str]:
    """Returns the seconds from the first enqueue to the callback, and what the callback reported."""
    begun = time.perf_counter()
    with Batch.open("benchmark") as batch:
        batch.on_success(callback)
        batch.starmap(func, calls)  # type: ignore[arg-type]
    _, said = redis.blpop([DONE])
    return time.perf_counter() - begun, said.decode()


class Watch:
    """Calls `measure` in a thread every `every` seconds during the block, and keeps the largest value."""

    def __init__(self, measure: Callable[[], float], every: float) -> None:
        self._measure, self._every = measure, every
        self._over = threading.Event()
        self.most = 0.0

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            self.most = max(self.most, self._measure())
        connection.close()


def has_ended(batch: Batch) -> bool:
    return Batch.objects.filter(pk=batch.pk).exclude(finished_at=None).exists()


def wait_until(condition: Callable[[], object], timeout: float) -> None:
    """Waits for the condition; raises `TimeoutError` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not within {timeout:.0f} s.")
        time.sleep(0.05)


class Worker:
    """The processes of a running batchworker."""

    def __init__(self, pid: int) -> None:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self.coordinator = int(children[0])  # forked first
        executors = {int(pid) for key in redis.scan_iter("rq:worker:*.*.*") if (pid := _pid(key))}
        self.executors = sorted(executors & set(map(int, children)))


def _pid(key: bytes) -> bytes | None:
    return redis.hget(key, "pid") if redis.type(key) == b"hash" else None


def peak(pid: int | str = "self") -> float:
    """Returns the peak resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def processor_seconds(*pids: int | str) -> float:
    """Returns the CPU seconds that these processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
