"""The naive way under the same faults, for comparison: RQ's callbacks, each of which updates a counter.

    python -m tests.chaos.naive --seconds 40

Written as a careful user would: `UPDATE ... SET pending = pending - 1` (the SQL of `F()`), failures that count when no
retry is left, and workers that are replaced when they die, and die with their host. RQ's leases and maintenance
interval are as short as ours.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import django
from django.core.management import call_command
from django.db import Error, connection, connections
from redis import Redis
from redis.exceptions import RedisError
from rq import Callback, Queue, Retry, Worker
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job

from django_batches.worker.processes import die_with

from . import ledger, naive_jobs
from .faults import KINDS, PARTITIONS
from .harness import SETTLE
from .injector import Injector
from .stage import Stage, new_folder, stage
from .worker import LEASE

TABLE = """
CREATE TABLE naive (id serial PRIMARY KEY, total int, pending int, succeeded int DEFAULT 0, failed int DEFAULT 0)
"""
MODULE = "tests.chaos.naive"
MAINTENANCE = 3


def load(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    while not (folder / "enough").exists():
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM naive WHERE pending > 0")
                if Queue(connection=redis()).count > 60:
                    time.sleep(0.1)
                    continue
                size = rng.randint(5, 40)
                cursor.execute("INSERT INTO naive (total, pending) VALUES (%s, %s) RETURNING id", [size, size])
                (batch,) = cursor.fetchone()
            queue = Queue(connection=redis())
            for _ in range(size):
                queue.enqueue(
                    naive_jobs.work, batch, rng.choice([0.01, 0.03, 0.06]), rng.choice([0, 10]),
                    on_success=Callback(naive_jobs.succeeded), on_failure=Callback(naive_jobs.failed),
                    retry=Retry(max=3), job_timeout=60,
                )  # fmt: skip
        except (Error, RedisError, OSError) as error:
            print(error, flush=True)
            connection.close()
            time.sleep(0.2)


def host(folder: Path, workers: int = 2) -> None:
    """Starts RQ's own workers, and replaces those that die, until SIGTERM."""
    over: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    running: list[subprocess.Popen[bytes]] = []
    while not over:
        running = [process for process in running if process.poll() is None]
        while len(running) < workers:
            running.append(subprocess.Popen([sys.executable, "-m", MODULE, "worker", str(os.getpid())]))
            with (folder / "children").open("a") as file:
                file.write(f"{os.getpid()} {running[-1].pid} naive.1\n")
        time.sleep(0.2)
    for process in running:
        process.terminate()
    for process in running:
        process.wait()


class ShortTimesWorker(Worker):
    """A worker with our lease and maintenance interval: RQ's own are 90 s and 10 minutes."""

    @property
    def dequeue_timeout(self) -> int:
        return MAINTENANCE

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return LEASE


def redis() -> Redis:
    return Redis.from_url(os.environ["REDIS_URL"], socket_timeout=10)


@dataclass
class Outcome:
    """The errors after a round, and the totals."""

    faults: int
    batches: int
    jobs: int
    lost: int
    """Jobs without a finished run that were not counted as failed."""
    hanging: int
    """Batches that never reached 0."""
    miscounted: int
    """Batches below 0, or whose successes differ from the finished jobs in the ledger."""
    missed: int
    """Batches without their final callback, including hanging ones."""
    doubled: int


def run(seed: int, seconds: float, pause: float) -> Outcome:
    folder = new_folder(None)
    with stage(folder, seed) as built:
        django.setup()
        call_command("migrate", verbosity=0)
        connections.close_all()
        with built.postgres.connect() as database:
            database.execute(TABLE)
        built.start_hosts(3, [MODULE, "host"])
        built.start_load(MODULE, "load")
        injector = Injector(built, [kind for kind in KINDS if kind not in PARTITIONS], pause)
        injector.run(seconds)
        built.end_load()
        settle(built)
        built.kill_all()
        outcome = judge(built, injector)
    shutil.rmtree(folder)
    return outcome


def settle(built: Stage) -> None:
    deadline = time.monotonic() + SETTLE
    with built.postgres.connect() as database:
        while time.monotonic() < deadline:
            if database.execute("SELECT count(*) FROM naive WHERE pending > 0").fetchone() == (0,):
                time.sleep(2)
                return
            time.sleep(0.5)


def judge(built: Stage, injector: Injector) -> Outcome:
    runs = ledger.read(built.folder)
    finished = Counter(batch for batch, _ in {(run.batch, run.job) for run in runs if run.finished})
    called = Counter(run.batch for run in runs if run.event)
    with built.postgres.connect() as database:
        rows = database.execute("SELECT id::text, total, pending, succeeded, failed FROM naive").fetchall()
    return Outcome(
        len(injector.injected),
        len(rows),
        sum(total for _, total, *_ in rows),
        sum(max(0, total - finished[key] - failed_) for key, total, _, _, failed_ in rows),
        sum(pending > 0 for _, _, pending, *_ in rows),
        sum(pending < 0 or done_ != finished[key] for key, _, pending, done_, _ in rows),
        sum(not called[key] for key, *_ in rows),
        sum(count > 1 for count in called.values()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.naive")
    parser.add_argument("part", nargs="*", help="process of a round; the round starts it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--pause", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(os.environ.get(ledger.FOLDER, ""))
    match options.part:
        case ["host"]:
            host(folder)
        case ["load", seed]:
            django.setup()
            load(folder, int(seed))
        case ["worker", parent]:
            django.setup()
            die_with(int(parent))
            IntermediateQueue.should_be_cleaned_up = lambda *_: True  # at the second check, not after a minute
            worker = ShortTimesWorker(
                ["default"], connection=redis(), job_monitoring_interval=2, maintenance_interval=MAINTENANCE
            )
            worker.work(logging_level="WARNING", with_scheduler=False)
        case _:
            outcome = run(options.seed, options.seconds, options.pause)
            print(outcome)
            if options.json:
                options.json.write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    sys.exit(main())
