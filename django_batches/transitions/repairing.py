"""Compares the counters of batches with their rows, and finds batches that should have ended.

Counters move in the transaction of their rows, so a difference is a bug of this app. The rows are right: the counters
are repaired, and an ERROR is logged.
"""

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone

from .. import database
from ..states import BATCH_ENDED
from . import finishing
from .finishing import Tally

logger = logging.getLogger("django_batches")

_COUNTERS = ("pending", "succeeded", "failed", "cancelled", "in_flight", "open_callbacks", "total")
_COUNTED = f"""
SELECT b.pending, b.succeeded, b.failed, b.cancelled, b.in_flight, b.open_callbacks, b.total,
  COALESCE(j.pending, 0), COALESCE(j.succeeded, 0), COALESCE(j.failed, 0), COALESCE(j.cancelled, 0),
  COALESCE(j.in_flight, 0),
  (SELECT COUNT(*) FROM {database.JOB} c WHERE c.callback_of_id = b.id
   AND c.status NOT IN ('succeeded', 'failed', 'cancelled')),
  COALESCE(j.total, 0)
FROM {database.BATCH} b LEFT JOIN (
  SELECT batch_id, COUNT(*) AS total,
    SUM(CASE WHEN status NOT IN ('succeeded', 'failed', 'cancelled') THEN 1 ELSE 0 END) AS pending,
    SUM(CASE WHEN status = 'succeeded' THEN 1 ELSE 0 END) AS succeeded,
    SUM(CASE WHEN status = 'failed' THEN 1 ELSE 0 END) AS failed,
    SUM(CASE WHEN status = 'cancelled' THEN 1 ELSE 0 END) AS cancelled,
    SUM(CASE WHEN status IN ('queued', 'running') THEN 1 ELSE 0 END) AS in_flight
  FROM {database.JOB} WHERE batch_id = %s GROUP BY batch_id
) j ON j.batch_id = b.id WHERE b.id = %s AND b.deleting_at IS NULL
"""
_repairs = 0


def drift(batch_id: UUID) -> dict[str, int]:
    """By how much the counters of a batch differ from its rows, counted in one statement; empty if they agree.

    Empty also for a batch that is being deleted: its rows are deleted in chunks, and its counters stay.
    """
    key = database.parameter(batch_id)
    for found in database.execute(_COUNTED, [key, key]):
        pairs = zip(_COUNTERS, found[: len(_COUNTERS)], found[len(_COUNTERS) :], strict=True)
        return {name: int(by_rows) - counter for name, counter, by_rows in pairs if int(by_rows) != counter}
    return {}


def repair_counters(batch_id: UUID, *, skip_locked: bool = False) -> bool:
    """Sets the counters of a batch to what its rows say and logs an ERROR; False if they agree under the lock."""
    if not drift(batch_id):
        return False
    with database.atomic():
        batch = database.lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)
        # Again: outcomes may have been committed between the statement above and the lock.
        found = drift(batch_id) if batch else {}
        if batch is None or not found:
            return False
        logger.error("The counters of batch %s differ from its rows by %s; repaired.", batch_id, found)
        changes: dict[str, Any] = {name: getattr(batch, name) + by for name, by in found.items()}
        for name, value in changes.items():
            setattr(batch, name, value)
        database.batches().filter(pk=batch_id).update(**changes)
        finishing.update_batches([Tally(batch)], timezone.now())
    global _repairs
    _repairs += 1
    return True


def repairs() -> int:
    """How many batches this process has repaired since the last call, for the metrics."""
    global _repairs
    count, _repairs = _repairs, 0
    return count


def batches_to_check(recent: timedelta = timedelta(minutes=10), limit: int = 200) -> list[UUID]:
    """The newest batches that have not ended, or ended recently."""
    alive = database.batches().filter(finished_at=None).order_by("-pk")
    ended = database.batches().filter(status__in=BATCH_ENDED, finished_at__gt=timezone.now() - recent).order_by("-pk")
    found = [*alive.values_list("pk", flat=True)[:limit], *ended.values_list("pk", flat=True)[:limit]]
    return sorted(found, reverse=True)[:limit]


def batches_to_end() -> list[UUID]:
    """Batches with nothing pending that did not end with their last job. There should be none."""
    stuck = database.batches().filter(finished_at=None, pending=0, retry_position=None)
    return list(stuck.exclude(sealed_at=None, cancelled_at=None).values_list("pk", flat=True)[:100])


def end_batches() -> int:
    """Ends the batches of `batches_to_end`; returns how many."""
    count = 0
    for batch_id in batches_to_end():
        with database.atomic():
            batch = database.lock_batches([batch_id], skip_locked=True).get(batch_id)
            if batch is not None and finishing.can_end(batch):
                finishing.update_batches([Tally(batch)], timezone.now())
                count += 1
    return count
