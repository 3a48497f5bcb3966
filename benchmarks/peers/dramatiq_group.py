"""Dramatiq: a group with a completion callback and a barrier in Redis."""

import sys

import dramatiq
from dramatiq import group
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend

from benchmarks.contend import PROCESSES, REDIS_URL, report_done

PACKAGES = ("dramatiq", "redis")

broker = RedisBroker(url=REDIS_URL)
broker.add_middleware(GroupCallbacks(RedisBackend(url=REDIS_URL)))
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(index: int) -> None:
    pass


@dramatiq.actor
def done() -> None:
    report_done()


def workers() -> list[list[str]]:
    return [[sys.executable, "-m", "dramatiq", __name__, "--processes", str(PROCESSES), "--threads", "1"]]


def start(jobs: int) -> None:
    group_of_jobs = group([noop.message(index) for index in range(jobs)])
    group_of_jobs.add_completion_callback(done.message())
    group_of_jobs.run()
