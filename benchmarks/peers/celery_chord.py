"""Celery: a chord, with Redis as broker and result backend; one worker with a pool of processes."""

import sys

from celery import Celery, chord

from benchmarks.contend import PROCESSES, REDIS_URL, report_done

PACKAGES = ("celery", "kombu", "redis")

app = Celery("benchmark", broker=REDIS_URL, backend=REDIS_URL)


@app.task
def noop(index: int) -> None:
    pass


@app.task
def done(results: list) -> None:
    report_done()


def workers() -> list[list[str]]:
    return [celery_worker(__name__)]


def celery_worker(module: str) -> list[str]:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
    return [sys.executable, "-m", "celery", "-A", module, "worker", "--concurrency", str(PROCESSES), *quiet]


def start(jobs: int) -> None:
    chord(noop.s(index) for index in range(jobs))(done.s())
