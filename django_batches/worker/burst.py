"""When a `--burst` is over: nothing is due, in flight or unapplied on its queues."""

from collections.abc import Sequence
from typing import Any

from django.db import Error
from django.utils import timezone
from redis.exceptions import RedisError

from ..coordinator.timer import Every
from ..transitions import children, claiming
from ..transport.client import Keys, client, known_queues
from .slots import SlotTable

INTERVAL = 0.3
EMPTY_CHECKS = 2
"""Consecutive checks that must find nothing: between two checks a job may move from one place to another."""


class Burst:
    """Checks the database and the queues in Redis, at most every 0.3 seconds."""

    def __init__(self, queues: Sequence[str], slots: SlotTable) -> None:
        self._queues, self._slots = queues, slots
        self._redis: Any = client()
        self._keys = Keys()
        self._check = Every(INTERVAL)
        self._empty_checks = 0

    def is_over(self) -> bool:
        if any(self._slots.read(slot) for slot in self._slots.all):
            return False  # at its end, an RQ job may enqueue its dependents, or itself
        if self._empty_checks < EMPTY_CHECKS and self._check.is_due():
            self._empty_checks = 0 if self._has_work() else self._empty_checks + 1
        return self._empty_checks >= EMPTY_CHECKS

    def _has_work(self) -> bool:
        try:
            if claiming.has_work(self._queues, timezone.now()) or children.has_unnotified_parents():
                return True
            lists = [self._keys.queue(name) for name in self._queues or known_queues(self._redis)]
            rq_ids = [rq_id for key in lists for rq_id in self._redis.lrange(key, 0, 50)]
            return any(not self._keys.is_foreign(rq_id.decode()) for rq_id in rq_ids)
        except (Error, RedisError, OSError):
            return True
