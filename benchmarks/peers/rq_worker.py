"""RQ itself with its `Worker`, which forks for every job. No batch: the time ends with the last job."""

import sys
import time

from redis import Redis
from rq import Queue
from rq.registry import FinishedJobRegistry

from benchmarks.contend import PROCESSES, REDIS_URL

PACKAGES = ("rq", "redis")
WORKER = "rq.worker.Worker"

redis = Redis.from_url(REDIS_URL)


def noop(index: int) -> None:
    pass


def workers() -> list[list[str]]:
    return rq_workers(WORKER)


def rq_workers(kind: str) -> list[list[str]]:
    program = [sys.executable, "-c", "import sys; from rq.cli import main; sys.exit(main())"]
    command = [*program, "worker", "--quiet", "--url", REDIS_URL, "--worker-class", kind]
    return [command for _ in range(PROCESSES)]


def start(jobs: int) -> None:
    for key in redis.scan_iter("rq:finished:*"):
        redis.delete(key)
    queue = Queue(connection=redis)
    queue.enqueue_many([Queue.prepare_data(noop, (index,)) for index in range(jobs)])


def wait(jobs: int) -> None:
    registry = FinishedJobRegistry(connection=redis)
    while redis.zcard(registry.key) < jobs:
        time.sleep(0.005)
