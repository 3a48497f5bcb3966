"""How fast batches move, and how long they will still take: from the time buckets, never from the jobs."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from django.db.models import F, Sum
from django.utils import timezone

from .. import database

if TYPE_CHECKING:
    from . import Batch

MINUTE = timedelta(minutes=1)
FEW, SOON = 20, timedelta(seconds=5)
"""A rate says something once so many jobs have ended within the last minute, and the batch has run for so long."""


@dataclass(frozen=True)
class Pace:
    """How fast a batch moved within the last minute."""

    ended: int = 0
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        return self.ended / self.seconds if self.seconds else 0.0

    @property
    def says_something(self) -> bool:
        return self.ended >= FEW or (self.ended > 0 and self.seconds >= SOON.total_seconds())


def paces(batches: Iterable["Batch"], now: datetime | None = None) -> dict[UUID, Pace]:
    """The pace of each of the batches that runs, in one query over the time buckets."""
    now = now or timezone.now()
    running = {batch.pk: batch for batch in batches if not batch.has_ended and batch.started_at}
    if not running:
        return {}
    recent = database.related("TimeBucket").filter(batch__in=list(running), starts_at__gt=now - MINUTE)
    ended = F("succeeded") + F("failed") + F("cancelled")
    found = dict(recent.order_by().values_list("batch").annotate(ended=Sum(ended)))
    return {
        key: Pace(found.get(key, 0), min(MINUTE.total_seconds(), max(1.0, _seconds(batch, now))))
        for key, batch in running.items()
    }


def pace_of(batch: "Batch") -> Pace:
    """The pace of one batch; none where it does not run."""
    return paces([batch]).get(batch.pk, Pace())


def eta(batch: "Batch", pace: Pace) -> timedelta | None:
    """How long it will still take at this pace; None where that says nothing."""
    if batch.has_ended or batch.is_paused or not batch.sealed_at or not pace.says_something:
        return None
    return timedelta(seconds=batch.pending / pace.per_second)


def _seconds(batch: "Batch", now: datetime) -> float:
    return (now - (batch.started_at or batch.created_at)).total_seconds()
