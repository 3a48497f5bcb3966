"""The counters of a batch against its rows, and the removal of ended batches.

The rows are the truth and the counters move with them in one transaction, so a difference is a bug of ours: it is
repaired, and said loudly.
"""

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone

from ..exceptions import BatchError
from . import counting, rows
from .counting import Tally

logger = logging.getLogger("django_batches")

_COUNTED = f"""
SELECT b.id, b.pending, b.succeeded, b.failed, b.cancelled, b.in_flight, b.open_callbacks, b.total,
  COALESCE(j.pending, 0), COALESCE(j.succeeded, 0), COALESCE(j.failed, 0), COALESCE(j.cancelled, 0),
  COALESCE(j.in_flight, 0),
  (SELECT COUNT(*) FROM {rows.JOB} c WHERE c.callback_of_id = b.id
   AND c.status NOT IN ('succeeded', 'failed', 'cancelled')),
  COALESCE(j.total, 0)
FROM {rows.BATCH} b LEFT JOIN (
  SELECT batch_id, COUNT(*) AS total,
    SUM(CASE WHEN status NOT IN ('succeeded', 'failed', 'cancelled') THEN 1 ELSE 0 END) AS pending,
    SUM(CASE WHEN status = 'succeeded' THEN 1 ELSE 0 END) AS succeeded,
    SUM(CASE WHEN status = 'failed' THEN 1 ELSE 0 END) AS failed,
    SUM(CASE WHEN status = 'cancelled' THEN 1 ELSE 0 END) AS cancelled,
    SUM(CASE WHEN status IN ('queued', 'running') THEN 1 ELSE 0 END) AS in_flight
  FROM {rows.JOB} WHERE batch_id = %s GROUP BY batch_id
) j ON j.batch_id = b.id WHERE b.id = %s
"""
_NAMES = ("pending", "succeeded", "failed", "cancelled", "in_flight", "open_callbacks", "total")


def drift(batch_id: UUID) -> dict[str, int]:
    """By how much the counters of a batch differ from its rows, seen in one statement; empty where they agree."""
    key = rows.parameter(batch_id)
    found = rows.execute(_COUNTED, [key, key])
    if not found:
        return {}
    kept, counted = found[0][1:8], found[0][8:]
    return {name: int(c) - k for name, k, c in zip(_NAMES, kept, counted, strict=True) if int(c) != k}


def repair_counters(batch_id: UUID) -> bool:
    """Sets the counters to what the rows say, where they still differ under the lock; logs an ERROR if so."""
    if not drift(batch_id):
        return False
    with rows.atomic():
        batch = rows.lock_batches([batch_id]).get(batch_id)
        # Looked at again: outcomes may have been committed between the statement above and the lock.
        found = drift(batch_id) if batch else {}
        if batch is None or not found:
            return False
        logger.error("The counters of batch %s differ from its rows by %s; repaired.", batch_id, found)
        changes: dict[str, Any] = {name: getattr(batch, name) + by for name, by in found.items()}
        for name, value in changes.items():
            setattr(batch, name, value)
        rows.batches().filter(pk=batch_id).update(**changes)
        counting.write([Tally(batch)], timezone.now())
    return True


def to_check(recent: timedelta = timedelta(minutes=10), limit: int = 200) -> list[UUID]:
    """The batches that run, and those that ended lately: whose counters are worth a look."""
    alive = rows.batches().filter(finished_at=None) | rows.batches().filter(finished_at__gt=timezone.now() - recent)
    return list(alive.order_by("-pk").values_list("pk", flat=True)[:limit])


def end_what_can_end() -> int:
    """Ends batches that have nothing pending and were not ended with their last job: there should be none."""
    stuck = rows.batches().filter(finished_at=None, pending=0, retry_position=None)
    stuck = stuck.exclude(sealed_at=None, cancelled_at=None)
    count = 0
    for batch_id in list(stuck.values_list("pk", flat=True)[:100]):
        with rows.atomic():
            batch = rows.lock_batches([batch_id]).get(batch_id)
            if batch is not None and counting.can_end(batch):
                counting.write([Tally(batch)], timezone.now())
                count += 1
    return count


def delete(batch_id: UUID) -> int:
    """Deletes an ended batch whose callbacks have ended, in chunks; returns how many job rows went with it."""
    batch = rows.batches().filter(pk=batch_id).only("finished_at", "open_callbacks").first()
    if batch is None:
        return 0
    if not batch.finished_at or batch.open_callbacks:
        what = "has not ended: cancel it and wait" if not batch.finished_at else "has callbacks that have not ended"
        raise BatchError(f"Batch {batch_id} {what}. Nothing was deleted.")
    total = 0
    for owner in ("batch", "callback_of"):
        while True:
            chunk = rows.jobs().filter(**{owner: batch_id}).order_by("pk")[: rows.CHUNK]
            ids = list(chunk.values_list("pk", flat=True))
            rows.jobs().filter(pk__in=ids)._raw_delete(rows.alias())
            total += len(ids)
            if len(ids) < rows.CHUNK:
                break
    with rows.atomic():
        for name in ("TimeBucket", "FailureGroup"):
            rows.related(name).filter(batch=batch_id)._raw_delete(rows.alias())
    return total
