"""The counters of a batch against its rows, and batches that should have ended.

The rows are the truth and the counters move with them in one transaction, so a difference is a bug of ours: it is
repaired, and said loudly.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, OperationalError
from django.utils import timezone

from .. import database
from ..exceptions import BatchError
from ..states import BATCH_ENDED
from . import finishing
from .finishing import Tally

logger = logging.getLogger("django_batches")

_COUNTED = f"""
SELECT b.id, b.pending, b.succeeded, b.failed, b.cancelled, b.in_flight, b.open_callbacks, b.total,
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
_NAMES = ("pending", "succeeded", "failed", "cancelled", "in_flight", "open_callbacks", "total")


def drift(batch_id: UUID) -> dict[str, int]:
    """By how much the counters of a batch differ from its rows, seen in one statement; empty where they agree.

    Empty also for a batch whose deletion has begun: its rows go in chunks.
    """
    key = database.parameter(batch_id)
    found = database.execute(_COUNTED, [key, key])
    if not found:
        return {}
    kept, counted = found[0][1:8], found[0][8:]
    return {name: int(c) - k for name, k, c in zip(_NAMES, kept, counted, strict=True) if int(c) != k}


def repair_counters(batch_id: UUID, *, skip_locked: bool = False) -> bool:
    """Sets the counters to what the rows say, where they still differ under the lock; logs an ERROR if so."""
    if not drift(batch_id):
        return False
    with database.atomic():
        batch = database.lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)
        # Looked at again: outcomes may have been committed between the statement above and the lock.
        found = drift(batch_id) if batch else {}
        if batch is None or not found:
            return False
        logger.error("The counters of batch %s differ from its rows by %s; repaired.", batch_id, found)
        changes: dict[str, Any] = {name: getattr(batch, name) + by for name, by in found.items()}
        for name, value in changes.items():
            setattr(batch, name, value)
        database.batches().filter(pk=batch_id).update(**changes)
        finishing.write([Tally(batch)], timezone.now())
    global _repairs
    _repairs += 1
    return True


@contextmanager
def contain_errors(batch_id: UUID) -> Iterator[None]:
    """Around a step of the coordinator for one batch, which must not stop the books of all others.

    A CHECK refuses counters that differ from their rows: they are repaired, and the step is left to the next turn.
    """
    try:
        yield
    except OperationalError as error:
        if not database.is_lock_timeout(error):
            raise
        logger.warning("A step for batch %s waits for a row that somebody holds locked.", batch_id)
    except (BatchError, IntegrityError) as error:
        if not isinstance(error, IntegrityError) or not repair_counters(batch_id, skip_locked=True):
            logger.error("A step for batch %s is put off: %s", batch_id, error)


def repairs() -> int:
    """How many batches this process has repaired since the last call, for the metrics."""
    global _repairs
    count, _repairs = _repairs, 0
    return count


def to_check(recent: timedelta = timedelta(minutes=10), limit: int = 200) -> list[UUID]:
    """The batches that run, and those that ended lately: whose counters are worth a look."""
    alive = database.batches().filter(finished_at=None).order_by("-pk")
    ended = database.batches().filter(status__in=BATCH_ENDED, finished_at__gt=timezone.now() - recent).order_by("-pk")
    found = [*alive.values_list("pk", flat=True)[:limit], *ended.values_list("pk", flat=True)[:limit]]
    return sorted(found, reverse=True)[:limit]


def to_end() -> list[UUID]:
    """Batches that have nothing pending and were not ended with their last job: there should be none."""
    stuck = database.batches().filter(finished_at=None, pending=0, retry_position=None)
    return list(stuck.exclude(sealed_at=None, cancelled_at=None).values_list("pk", flat=True)[:100])


def end_what_can_end() -> int:
    """Ends the batches of `to_end`; returns how many."""
    count = 0
    for batch_id in to_end():
        with database.atomic():
            batch = database.lock_batches([batch_id], skip_locked=True).get(batch_id)
            if batch is not None and finishing.can_end(batch):
                finishing.write([Tally(batch)], timezone.now())
                count += 1
    return count
