"""The throughput and the ETA of batches. The queries read time buckets, never the rows of jobs."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import F, Sum
from django.utils import timezone

from .. import database

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Throughput:
    """How many jobs of a batch ended within the last minute or, if it is younger, since its start."""

    ended: int = 0
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        return self.ended / self.seconds if self.seconds else 0.0

    @property
    def is_significant(self) -> bool:
        """Whether enough jobs ended, or the batch has run for long enough, to estimate its end."""
        return self.ended >= 20 or (self.ended > 0 and self.seconds >= 5)


def throughputs(batches: Iterable["database.Batch"], now: datetime | None = None) -> dict[UUID, Throughput]:
    """Returns the throughput of each running batch, by the key of the batch. Takes one query."""
    now = now or timezone.now()
    running = {batch.pk: batch.started_at for batch in batches if not batch.has_ended and batch.started_at}
    if not running:
        return {}
    recent = database.related("TimeBucket").filter(batch__in=list(running), starts_at__gt=now - MINUTE)
    ended = F("succeeded") + F("failed") + F("cancelled")
    found = dict(recent.order_by().values_list("batch").annotate(ended=Sum(ended)))
    return {
        key: Throughput(found.get(key, 0), min(max(1.0, (now - start).total_seconds()), MINUTE.total_seconds()))
        for key, start in running.items()
    }


def throughput_of(batch: "database.Batch") -> Throughput:
    """Returns the throughput of one batch; zero if it is not running."""
    return throughputs([batch]).get(batch.pk, Throughput())


def eta(batch: "database.Batch", throughput: Throughput) -> timedelta | None:
    """Returns the time until the batch ends at this throughput, or None if it cannot be estimated."""
    if batch.has_ended or batch.is_paused or not batch.sealed_at or not throughput.is_significant:
        return None
    return timedelta(seconds=batch.pending / throughput.per_second)
