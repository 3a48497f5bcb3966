"""What each fast path gains: the same work with it and without it, in turns.

    python -m example_project.servers --postgres -- python -m benchmarks.fast_paths [word of a name ...]

A fast path is kept if it saves 3 % or more of the work that it is part of. Prints a table of medians; the ratios stand
in comments beside the code.
"""

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from django.db.models import F
from django.utils import timezone
from rq.utils import now, utcformat

from .contend import empty_database

from .laboratory import Batch, redis, tasks  # isort: skip  # sets up Django

from django_batches import database
from django_batches.database.base import Dialect
from django_batches.database.postgresql import PostgreSQL
from django_batches.database.uuid7 import uuid7
from django_batches.execution import runner
from django_batches.transitions import applying, batch_status, claiming, creating
from django_batches.transitions.job_status import Change
from django_batches.transport import scripts
from django_batches.transport.outcomes import Kind, Outcome
from django_batches.worker import cleanup
from django_batches.worker.executor import Executor
from django_batches.worker.options import Options
from django_batches.worker.slots import SlotTable

ROUNDS = 11
JOBS = 2_000


class ClientScript:
    """A script on redis-py's client."""

    def __init__(self, client: Any, text: str) -> None:
        self._script = client.register_script(text)

    def __call__(self, args: Any) -> Any:
        return self._script(args=args)


@contextmanager
def rq_time() -> Iterator[None]:
    with patch.object(scripts, "stamp", lambda: utcformat(now())):
        yield


def executor() -> float:
    """Processor time of a busy executor per no-op job, in µs."""
    executor = Executor(Options(queues=["default"]), SlotTable(1), 0, "executor", os.getppid())
    keys, batch = executor._scripts.keys, uuid7().hex
    jobs = []
    for _ in range(JOBS):
        job = uuid7()
        message = f'["{batch}","{job.hex}",0,"","benchmarks.jobs.noop",180,0,1,[],[[1],{{}}]]'
        jobs.append(scripts.Pushed(keys.rq_id(job, 1), message, f"{batch}0", 180, ""))
    executor._scripts.push(1, "default", jobs)
    executor._redis.ping()
    executor._connected_at = 0.0  # as after its first seconds, when it checks no row
    assert executor.step() == "job"
    begun = time.process_time()
    while executor.step() == "job":
        pass
    seconds = time.process_time() - begun
    redis.delete(keys.outcomes)
    executor._redis.connection_pool.disconnect()
    return seconds / (JOBS - 1) * 1e6


class Clock:
    """Processor time of this process and of its PostgreSQL session."""

    def __enter__(self) -> "Clock":
        ((process,),) = database.execute("SELECT pg_backend_pid()")
        self._session = Path(f"/proc/{process}/schedstat")
        self._begun = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = self._now() - self._begun
        database.execute(f"TRUNCATE {database.BATCH} CASCADE")

    def _now(self) -> float:
        return time.process_time() + int(self._session.read_text().split()[0]) / 1e9


def outcomes_of(batches: int, jobs: int) -> list[Outcome]:
    """Successes of jobs in flight."""
    for _ in range(batches):
        with Batch.open() as batch:
            batch.on_finish(tasks.noop)
            batch.map(tasks.noop, range(jobs))
    database.batches().update(in_flight=F("pending"))
    database.jobs().update(status="queued", dispatch=1)
    at = timezone.now()
    return [
        Outcome(Kind.SUCCEEDED, pk, 1, batch, worker="host:batch.1", started_at=at, finished_at=at, result='"done"')
        for pk, batch in database.jobs().order_by("pk").values_list("pk", "batch_id")
    ]


def recording(batches: int, jobs: int, chunk: int) -> float:
    """Processor time to apply an outcome, in µs."""
    outcomes = outcomes_of(batches, jobs)
    with Clock() as clock:
        for start in range(0, len(outcomes), chunk):
            applying.record(outcomes[start : start + chunk])
    return clock.seconds / len(outcomes) * 1e6


def adding(batches: int, jobs: int) -> float:
    """Processor time to open and fill a batch, in µs."""
    with Clock() as clock:
        for _ in range(batches):
            with Batch.open() as batch:
                batch.map(tasks.noop, range(jobs))
    return clock.seconds / batches * 1e6


def callbacks() -> float:
    """Processor time to end a batch and claim its callback, in µs."""
    outcomes = outcomes_of(100, 1)
    with Clock() as clock:
        for outcome in outcomes:
            if not applying.record([outcome], claims=1).claimed:
                assert claiming.claim_callbacks(1, timezone.now)
    return clock.seconds / len(outcomes) * 1e6


def reading() -> float:
    """Processor time to read a batch, in µs."""
    with Batch.open() as batch:
        batch.map(tasks.noop, [1])
    with Clock() as clock:
        for _ in range(200):
            database.dialect().batch(batch.pk)
    return clock.seconds / 200 * 1e6


fast_values = PostgreSQL.values


def values_by_driver(self: PostgreSQL, columns: Any, rows: Any) -> Any:
    text, _ = fast_values(self, columns, ())
    return text, [list(column) for column in zip(*rows, strict=True)]


FAST_PATHS: dict[str, tuple[Callable[[], float], Callable[[], Any]]] = {
    "an executor's turn on a connection of its own": (
        executor,
        lambda: patch.object(scripts, "_FastScript", ClientScript),
    ),
    "an executor's check of signal handlers without enums": (
        executor,
        lambda: patch.object(cleanup, "getsignal", signal.getsignal),
    ),
    "a job's alarm without enums": (executor, lambda: patch.object(runner, "set_handler", signal.signal)),
    "RQ's time format by isoformat": (executor, rq_time),
    "array literals without the driver": (
        lambda: recording(5, 400, 500),
        lambda: patch.object(PostgreSQL, "values", values_by_driver),
    ),
    "a shorter statement for successes": (
        lambda: recording(5, 400, 500),
        lambda: patch.object(Change, "is_success_of_run", False),
    ),
    "batches locked without a queryset": (
        lambda: recording(100, 2, 2),
        lambda: patch.object(PostgreSQL, "lock_batches", Dialect.lock_batches),
    ),
    "a batch read without a queryset": (reading, lambda: patch.object(PostgreSQL, "batch", Dialect.batch)),
    "ten jobs inserted and counted by one statement": (
        lambda: adding(100, 10),
        lambda: patch.object(creating, "FEW", 0),
    ),
    "a thousand jobs by COPY": (lambda: adding(3, 1000), lambda: patch.object(PostgreSQL, "insert", Dialect.insert)),
    "callbacks claimed when they are inserted": (
        callbacks,
        lambda: patch.object(batch_status, "_claim", lambda *_: None),
    ),
}
"""By name: what is measured, and a context in which the fast path is replaced by the plain way."""


def main() -> None:
    redis.flushall()
    empty_database()
    chosen = [name for name in FAST_PATHS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    print("| fast path | with it | without it | ratio |\n|---|---:|---:|---:|")
    for name in chosen:
        measure, plain_way = FAST_PATHS[name]
        fast, plain = [], []
        for _ in range(ROUNDS):
            fast.append(measure())
            with plain_way():
                plain.append(measure())
        with_it, without = statistics.median(fast), statistics.median(plain)
        print(f"| {name} | {with_it:.0f} µs | {without:.0f} µs | {without / with_it:.2f} |", flush=True)


if __name__ == "__main__":
    main()
