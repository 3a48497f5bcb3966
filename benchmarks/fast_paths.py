"""What each fast path gains: the same work with it and without it, in turns.

    python -m example_project.servers --postgres -- python -m benchmarks.fast_paths

A fast path is kept if it saves 3 % or more of the work that it is part of. Prints a table of medians; the ratios stand
in comments beside the code.
"""

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from rq.utils import now, utcformat

from .laboratory import redis  # isort: skip  # sets up Django

from django_batches.database.uuid7 import uuid7
from django_batches.execution import runner
from django_batches.transport import scripts
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
}
"""By name: what is measured, and a context in which the fast path is replaced by the plain way."""


def main() -> None:
    redis.flushall()
    print("| fast path | with it | without it | ratio |\n|---|---:|---:|---:|")
    for name, (measure, plain_way) in FAST_PATHS.items():
        fast, plain = [], []
        for _ in range(ROUNDS):
            fast.append(measure())
            with plain_way():
                plain.append(measure())
        with_it, without = statistics.median(fast), statistics.median(plain)
        print(f"| {name} | {with_it:.0f} µs | {without:.0f} µs | {without / with_it:.2f} |", flush=True)


if __name__ == "__main__":
    main()
