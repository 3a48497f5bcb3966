"""Huey: a chord on Redis, one consumer with worker processes."""

import sys

from huey import RedisHuey, chord

from benchmarks.contend import PROCESSES, REDIS_URL, report_done

PACKAGES = ("huey", "redis")

huey = RedisHuey("benchmark", url=REDIS_URL)


@huey.task()
def noop(index: int) -> None:
    pass


@huey.task()
def done(results: list) -> None:
    report_done()


def workers() -> list[list[str]]:
    consumer = [sys.executable, "-m", "huey.bin.huey_consumer", f"{__name__}.huey"]
    return [[*consumer, "--workers", str(PROCESSES), "--worker-type", "process", "--quiet"]]


def start(jobs: int) -> None:
    huey.enqueue(chord([noop.s(index) for index in range(jobs)], done.s()))
