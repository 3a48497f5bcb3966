"""When a `--burst` is over: nothing due, in flight or unapplied on its queues."""

import time
from collections.abc import Sequence
from typing import Any

from django.db import Error
from django.utils import timezone
from redis.exceptions import RedisError

from ..transitions import children, claiming
from ..transport.client import Keys, client

INTERVAL = 0.3
LOOKS = 2
"""Looks in a row that must find nothing: a job may be on its way from one place to the next."""


class Burst:
    """Asks the database and the lists in Redis, not more often than every 0.3 s."""

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = list(queues)
        self._redis = client()
        self._keys = Keys()
        self._next = 0.0
        self._quiet = 0

    def is_over(self) -> bool:
        if time.monotonic() >= self._next and self._quiet < LOOKS:
            self._next = time.monotonic() + INTERVAL
            self._quiet = 0 if self._has_work() else self._quiet + 1
        return self._quiet >= LOOKS

    def _has_work(self) -> bool:
        try:
            if claiming.has_work(self._queues, timezone.now()) or children.has_unnotified_parents():
                return True
            redis: Any = self._redis
            lists = [self._keys.queue(name) for name in self._queues] or redis.smembers(f"{self._keys.RQ}:queues")
            waiting = [rq_id.decode() for key in lists for rq_id in redis.lrange(key, 0, 50)]
            return any(not self._keys.is_foreign(rq_id) for rq_id in waiting)
        except (Error, RedisError, OSError):
            return True
