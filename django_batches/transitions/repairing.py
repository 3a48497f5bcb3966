"""Compares the counters of batches with their rows, and finds batches that should have ended.

Counters change in the same transaction as the rows, so a difference is a bug of this app. The rows are taken as right:
the counters are repaired, and an ERROR is logged.
"""

import logging
from datetime import timedelta
from uuid import UUID

from django.utils import timezone

from .. import database
from ..states import BATCH_ENDED
from .batch_status import Tally, can_end, update_batches

logger = logging.getLogger("django_batches")

_OPEN = "NOT IN ('succeeded', 'failed', 'cancelled')"
_CONDITIONS = {
    "total": "true",
    "pending": f"j.status {_OPEN}",
    **{name: f"j.status = '{name}'" for name in ("succeeded", "failed", "cancelled")},
    "in_flight": "j.status IN ('queued', 'running')",
}
_DRIFT = f"""
SELECT {", ".join(f"COUNT(j.id) FILTER (WHERE {rule}) - b.{name}" for name, rule in _CONDITIONS.items())},
  (SELECT COUNT(*) FROM {database.JOB} c WHERE c.callback_of_id = b.id AND c.status {_OPEN}) - b.open_callbacks
FROM {database.BATCH} b LEFT JOIN {database.JOB} j ON j.batch_id = b.id
WHERE b.id = %s AND b.deleting_at IS NULL GROUP BY b.id
"""
_repairs = 0


def drift(batch_id: UUID) -> dict[str, int]:
    """Returns, for each counter that differs from the rows of the batch, what to add. One statement reads both.

    Always empty for a batch that is being deleted: its rows are deleted in chunks, and its counters do not change.
    """
    differences = next(iter(database.execute(_DRIFT, [database.parameter(batch_id)])), ())
    return {name: by for name, by in zip([*_CONDITIONS, "open_callbacks"], differences, strict=False) if by}


def repair_counters(batch_id: UUID, *, skip_locked: bool = False) -> bool:
    """Corrects the counters of a batch from its rows and logs an ERROR. Returns False if nothing was repaired."""
    if not drift(batch_id):
        return False
    with database.atomic():
        batch = database.lock_batch(batch_id, skip_locked=skip_locked)
        # Count again under the lock: outcomes may have been committed since the first count.
        if batch is None or not (found := drift(batch_id)):
            return False
        logger.error("The counters of batch %s differ from its rows by %s; repaired.", batch_id, found)
        database.write_fields(batch, **{name: getattr(batch, name) + by for name, by in found.items()})
        update_batches([Tally(batch)], timezone.now())
    global _repairs
    _repairs += 1
    return True


def repairs() -> int:
    """Returns how many batches this process has repaired since the last call, for the metrics."""
    global _repairs
    count, _repairs = _repairs, 0
    return count


def batches_to_check(recent: timedelta = timedelta(minutes=10), limit: int = 200) -> list[UUID]:
    """Returns the newest batches that have not ended or have ended recently, to check their counters."""
    alive = database.batches().filter(finished_at=None).order_by("-pk")
    ended = database.batches().filter(status__in=BATCH_ENDED, finished_at__gt=timezone.now() - recent).order_by("-pk")
    found = [*alive.values_list("pk", flat=True)[:limit], *ended.values_list("pk", flat=True)[:limit]]
    return sorted(found, reverse=True)[:limit]


def batches_to_end() -> list[UUID]:
    """Returns batches that have not ended although no job is pending. There should be none."""
    stuck = database.batches().filter(finished_at=None, pending=0, retry_position=None)
    return list(stuck.exclude(sealed_at=None, cancelled_at=None).values_list("pk", flat=True)[:100])


def end_batches() -> int:
    """Ends the batches that `batches_to_end()` returns, and returns how many it ended."""
    count = 0
    for batch_id in batches_to_end():
        with database.atomic():
            batch = database.lock_batch(batch_id, skip_locked=True)
            if batch is not None and can_end(batch):
                update_batches([Tally(batch)], timezone.now())
                count += 1
    return count
