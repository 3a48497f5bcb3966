"""RQ's scheduler (`enqueue_in`, `Retry(interval)`, cron) and its registry maintenance, as RQ's own worker runs them.

It has a process of its own, because it runs user code: the failure callbacks of abandoned RQ jobs.
"""

import logging
import time
from collections.abc import Callable, Sequence

from django.db import close_old_connections
from redis import Redis
from redis.exceptions import RedisError
from rq import Worker
from rq.scheduler import RQScheduler

from ..conf import settings
from ..coordinator.timer import Every
from ..transport.client import client, known_queues

logger = logging.getLogger("django_batches")

INTERVAL = 1.0
LOCKS = 30.0
"""Seconds between two renewals of the scheduler's locks."""
REGISTRIES = 60.0
"""Seconds between two cleanups of RQ's registries."""


def run(queues: Sequence[str], should_stop: Callable[[], bool]) -> None:
    """Runs until `should_stop()` returns True. After an outage of Redis, it continues."""
    redis = client()
    while not should_stop():
        try:
            _run(redis, queues, should_stop)
        except (RedisError, OSError):
            time.sleep(INTERVAL)
        except Exception:
            # One malformed RQ job must not stop the maintenance of all queues.
            logger.exception("RQ's maintenance failed; retrying.")
            time.sleep(INTERVAL)


def _run(redis: Redis, queues: Sequence[str], should_stop: Callable[[], bool]) -> None:
    """Runs until `should_stop()` returns True or, if `queues` is empty, until RQ's set of queues changes."""
    names, serializer = list(queues) or known_queues(redis), settings().RQ_SERIALIZER
    locks, registries = Every(LOCKS), Every(REGISTRIES)
    scheduler = RQScheduler(names, connection=redis, logging_level=logging.WARNING, serializer=serializer)
    scheduler.register_birth()
    try:
        while not should_stop():
            if locks.is_due():
                if not queues and known_queues(redis) != names:
                    return
                scheduler.acquire_locks()
                scheduler.heartbeat()
            scheduler.enqueue_scheduled_jobs()
            if registries.is_due():
                _clean(names)
            time.sleep(INTERVAL)
    finally:
        scheduler.release_locks()  # otherwise these queues have no scheduler until the locks expire
        scheduler.register_death()


def _clean(names: Sequence[str]) -> None:
    redis = client()  # a separate client, because RQ's worker raises its timeouts to minutes
    try:
        for name in names:
            worker = Worker([name], connection=redis, serializer=settings().RQ_SERIALIZER)
            try:
                worker.clean_registries()
            except (RedisError, OSError):
                raise
            except Exception:
                # One malformed RQ job must not stop the maintenance of the other queues. Release the lock:
                # otherwise no worker would clean this queue for a quarter of an hour.
                logger.exception("RQ's maintenance of queue %s failed; continuing with the next queue.", name)
                worker.queues[0].release_maintenance_lock()
        Worker(names, connection=redis, serializer=settings().RQ_SERIALIZER).clean_group_registries()
        close_old_connections()
    finally:
        redis.connection_pool.disconnect()
