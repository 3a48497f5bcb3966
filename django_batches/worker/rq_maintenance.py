"""What RQ's own worker does beside running jobs: its scheduler (`enqueue_in`, `Retry(interval)`, cron) and the upkeep
of its registries. A process of its own, because the failure callbacks of abandoned jobs run user code here."""

import logging
import time
from collections.abc import Callable, Sequence

from django.db import close_old_connections
from redis import Redis
from redis.exceptions import RedisError
from rq import Worker
from rq.scheduler import RQScheduler

from ..conf import settings
from ..transport.client import client, known_queues

logger = logging.getLogger("django_batches")

INTERVAL = 1.0
LOCKS = 30.0
UPKEEP = 60.0


def run(queues: Sequence[str], should_stop: Callable[[], bool]) -> None:
    """Works until `should_stop()`; stays up while Redis is away."""
    redis = client()
    while not should_stop():
        try:
            _work(redis, queues, should_stop)
        except (RedisError, OSError):
            time.sleep(INTERVAL)
        except Exception:
            # One malformed job hash of somebody else must not end the upkeep of all queues.
            logger.exception("RQ's upkeep met an error; it goes on.")
            time.sleep(INTERVAL)


def _work(redis: Redis, queues: Sequence[str], should_stop: Callable[[], bool]) -> None:
    scheduler: RQScheduler | None = None
    locked_at = cleaned_at = 0.0
    try:
        while not should_stop():
            now = time.monotonic()
            if now - locked_at > LOCKS or scheduler is None:
                names = list(queues) or known_queues(redis)
                if scheduler is None or scheduler._queue_names != set(names):
                    _end(scheduler)
                    scheduler = _scheduler(redis, names)
                scheduler.acquire_locks()
                scheduler.heartbeat()
                locked_at = now
            scheduler.enqueue_scheduled_jobs()
            if now - cleaned_at > UPKEEP:
                _clean(names)
                cleaned_at = now
            time.sleep(INTERVAL)
    finally:
        _end(scheduler)


def _clean(names: Sequence[str]) -> None:
    redis = client()  # RQ's worker raises its time-outs to minutes, which would go for all that is asked here
    try:
        _clean_registries(redis, names)
    finally:
        redis.connection_pool.disconnect()


def _clean_registries(redis: Redis, names: Sequence[str]) -> None:
    for name in names:
        worker = Worker([name], connection=redis, serializer=settings().RQ_SERIALIZER)
        try:
            worker.clean_registries()
        except (RedisError, OSError):
            raise
        except Exception:
            # One malformed job hash of somebody else must not end the upkeep of the other queues, nor keep the lock,
            # behind which nobody would clean this one for a quarter of an hour.
            logger.exception("RQ's upkeep of the queue %s met an error; it goes on.", name)
            worker.queues[0].release_maintenance_lock()
    Worker(names, connection=redis, serializer=settings().RQ_SERIALIZER).clean_group_registries()
    close_old_connections()


def _end(scheduler: RQScheduler | None) -> None:
    if scheduler is not None:
        scheduler.release_locks()  # or its queues would have no scheduler until the locks run out
        scheduler.register_death()


def _scheduler(redis: Redis, names: list[str]) -> RQScheduler:
    scheduler = RQScheduler(names, connection=redis, logging_level=logging.WARNING, serializer=settings().RQ_SERIALIZER)
    scheduler.register_birth()
    return scheduler
