"""Decides when a `--burst` is over: its queues have no job due or in flight, and no outcome is unapplied."""

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
"""How many consecutive checks must find no work: a job may move to a place that the same check has already searched."""


class Burst:
    """Checks the database and the queues in Redis for work, at most every 0.3 seconds."""

    def __init__(self, queues: Sequence[str], slots: SlotTable) -> None:
        self._queues, self._slots = queues, slots
        self._redis: Any = client()
        self._keys = Keys()
        self._check = Every(INTERVAL)
        self._empty_checks = 0

    def is_over(self) -> bool:
        if any(self._slots.read(slot) for slot in self._slots.all):
            return False  # when it ends, an RQ job may enqueue its dependents, or itself again
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
