"""The counters of a batch against its rows, and the removal of ended batches.

The rows are the truth and the counters move with them in one transaction, so a difference is a bug of ours: it is
repaired, and said loudly.
"""

import logging
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import F, Q
from django.db.models.deletion import Collector
from django.utils import timezone

from ..exceptions import BatchError
from ..states import BATCH_ENDED, IN_FLIGHT, BatchStatus, JobStatus
from . import counting, rows
from .counting import Tally

logger = logging.getLogger("django_batches")

BEING_DELETED = Q(status__in=BATCH_ENDED, finished_at=None)
"""The mark of a batch whose deletion has begun: an ended status without an end."""

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
) j ON j.batch_id = b.id WHERE b.id = %s AND NOT (b.finished_at IS NULL AND b.status NOT IN ('open', 'running'))
"""
_WAITED_FOR = Q(
    is_awaited=True, parent_dispatch=F("parent__dispatch"), parent__status__in=[*IN_FLIGHT, JobStatus.WAITING]
)
TOGETHER = 20
"""Batches of a tree that one turn deletes."""
_repairs = 0
_NAMES = ("pending", "succeeded", "failed", "cancelled", "in_flight", "open_callbacks", "total")


def drift(batch_id: UUID) -> dict[str, int]:
    """By how much the counters of a batch differ from its rows, seen in one statement; empty where they agree.

    Empty also for a batch whose deletion has begun: its rows go in chunks.
    """
    key = rows.parameter(batch_id)
    found = rows.execute(_COUNTED, [key, key])
    if not found:
        return {}
    kept, counted = found[0][1:8], found[0][8:]
    return {name: int(c) - k for name, k, c in zip(_NAMES, kept, counted, strict=True) if int(c) != k}


def repair_counters(batch_id: UUID, *, skip_locked: bool = False) -> bool:
    """Sets the counters to what the rows say, where they still differ under the lock; logs an ERROR if so."""
    if not drift(batch_id):
        return False
    with rows.atomic():
        batch = rows.lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)
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
    global _repairs
    _repairs += 1
    return True


def repairs() -> int:
    """How many batches this process has repaired since the last call, for the metrics."""
    global _repairs
    count, _repairs = _repairs, 0
    return count


def to_check(recent: timedelta = timedelta(minutes=10), limit: int = 200) -> list[UUID]:
    """The batches that run, and those that ended lately: whose counters are worth a look."""
    alive = rows.batches().filter(finished_at=None).order_by("-pk")
    ended = rows.batches().filter(status__in=BATCH_ENDED, finished_at__gt=timezone.now() - recent).order_by("-pk")
    found = [*alive.values_list("pk", flat=True)[:limit], *ended.values_list("pk", flat=True)[:limit]]
    return sorted(found, reverse=True)[:limit]


def to_end() -> list[UUID]:
    """Batches that have nothing pending and were not ended with their last job: there should be none."""
    stuck = rows.batches().filter(finished_at=None, pending=0, retry_position=None)
    return list(stuck.exclude(sealed_at=None, cancelled_at=None).values_list("pk", flat=True)[:100])


def end_what_can_end() -> int:
    """Ends the batches of `to_end`; returns how many."""
    count = 0
    for batch_id in to_end():
        with rows.atomic():
            batch = rows.lock_batches([batch_id], skip_locked=True).get(batch_id)
            if batch is not None and counting.can_end(batch):
                counting.write([Tally(batch)], timezone.now())
                count += 1
    return count


def delete(batch_id: UUID, ended_before: datetime | None = None) -> int:
    """Deletes an ended batch whose callbacks have ended, in chunks; returns how many job rows went with it.

    Its child batches, and theirs, go with it. It is marked first, so that a retry that comes meanwhile is refused.
    Where this process dies half-way, a second call goes on, and so does the coordinator (`unfinished_deletes`). Raises
    `BatchError` where one of them has not ended (or the batch itself not before `ended_before`), and `ProtectedError`
    as any model does.
    """
    return sum(_delete_one(key) for key in reversed(begin_deleting(batch_id, ended_before)))


def tree(root: UUID) -> list[UUID]:
    """A batch and the batches below it, level by level; raises `BatchError` where one of these has not ended."""
    found, level = [root], [root]
    while level:
        below = rows.batches().filter(parent__batch__in=level) | rows.batches().filter(parent__callback_of__in=level)
        level = list(below.values_list("pk", flat=True))
        found += level
    open_ones = rows.batches().filter(pk__in=found[1:]).exclude(BEING_DELETED)
    open_ones = open_ones.filter(Q(finished_at=None) | Q(open_callbacks__gt=0))
    if child := open_ones.values_list("pk", flat=True).first():
        raise BatchError(f"Batch {child}, below batch {root}, has not ended: cancel it and wait. Nothing was deleted.")
    return found


def _delete_one(batch_id: UUID) -> int:
    if not _mark_for_deletion(batch_id):
        return 0
    total = _delete_jobs(batch_id)
    with rows.atomic():
        total += _delete_rest([batch_id])
    return total


def delete_at_once(ids: list[UUID]) -> int:
    """Deletes small ended batches, which the caller has locked and judged, in its transaction; how many job rows."""
    return rows.jobs().filter(batch__in=ids)._raw_delete(rows.alias()) + _delete_rest(ids)


def begin_deleting(batch_id: UUID, ended_before: datetime | None = None) -> list[UUID]:
    """The first step of `delete`, which raises what that raises; the coordinator goes on.

    Returns what will go, from the top down; nothing where it is gone.
    """
    whole = tree(batch_id)
    _collected(whole)  # raises before anything is done where a foreign key of the project is PROTECT
    # The top first: what is below it ends with it, so that nothing of the tree moves any more.
    return whole if _mark_for_deletion(batch_id, ended_before) else []


def _collected(ids: list[UUID]) -> Collector:
    """The batches and what the project's own foreign keys take with them; not the jobs, which may be millions.

    Raises `ProtectedError` or `RestrictedError`, as `delete()` of any model does.
    """
    batches = rows.batches().filter(pk__in=ids)
    collector = Collector(using=rows.alias(), origin=batches)
    collector.collect(batches)
    return collector


def _delete_rest(ids: list[UUID]) -> int:
    """Everything of the batches but their jobs; returns how many callbacks."""
    total = rows.jobs().filter(callback_of__in=ids)._raw_delete(rows.alias())
    for name in ("TimeBucket", "FailureGroup"):
        rows.related(name).filter(batch__in=ids)._raw_delete(rows.alias())
    _collected(ids).delete()
    return total


def unfinished_deletes() -> list[UUID]:
    """Batches whose deletion was cut off half-way, or is under way elsewhere."""
    return list(rows.batches().filter(BEING_DELETED).values_list("pk", flat=True)[:100])


def carry_on_deleting() -> None:
    """A chunk of one deletion that was cut off: the book-keeper must not be away for long."""
    for batch_id in unfinished_deletes():
        try:
            _delete_some(tree(batch_id)[-TOGETHER:])
            return
        except BatchError as error:  # a run that was given up has opened a child since: it must not stop the books
            logger.warning("The deletion of batch %s waits: %s", batch_id, error)


def _delete_some(batch_ids: list[UUID]) -> None:
    for key in reversed(batch_ids):
        ids = list(rows.jobs().filter(batch=key).values_list("pk", flat=True)[: rows.CHUNK])
        if len(ids) == rows.CHUNK:
            if _mark_for_deletion(key):
                rows.jobs().filter(pk__in=ids)._raw_delete(rows.alias())
            return
        _delete_one(key)


def _mark_for_deletion(batch_id: UUID, ended_before: datetime | None = None) -> bool:
    """Makes an ended batch one that is being cancelled and whose jobs are all pending; False where it is gone.

    No other transition moves such a batch: retry, seal and new jobs are refused under a cancel, cancel finds nothing
    that waits, and it cannot end while jobs are pending.
    """
    now = timezone.now()
    with rows.atomic():
        batch = rows.lock_batches([batch_id]).get(batch_id)
        if batch is None:
            return False
        if rows.batches().filter(BEING_DELETED, pk=batch_id).exists():
            return True
        if rows.batches().filter(_WAITED_FOR, pk=batch_id).exists():
            raise BatchError(f"The job that opened batch {batch_id} takes its outcome. Nothing was deleted.")
        if not batch.finished_at or batch.open_callbacks:
            what = "has callbacks that have not ended" if batch.finished_at else "has not ended: cancel it and wait"
            raise BatchError(f"Batch {batch_id} {what}. Nothing was deleted.")
        if ended_before and batch.finished_at >= ended_before:
            raise BatchError(f"Batch {batch_id} was retried and has ended again. Nothing was deleted.")
        rows.batches().filter(pk=batch_id).update(
            status=BatchStatus.CANCELLED,
            finished_at=None,
            cancelled_at=batch.cancelled_at or now,
            reason="It is being deleted.",
            total=max(batch.total, 1),
            pending=max(batch.total, 1),
            succeeded=0,
            failed=0,
            cancelled=0,
            first_failure=None,
            key="",
        )
    return True


def _delete_jobs(batch_id: UUID) -> int:
    """Deletes the jobs of a batch by ranges of their positions, each in a transaction of its own; returns how many."""
    jobs = rows.jobs().filter(batch=batch_id)
    last = jobs.order_by("-position").values_list("position", flat=True).first()
    # A range that goes on, not "the next ones": that would walk past everything deleted before, for each chunk again.
    starts = range(0, 0 if last is None else last + 1, rows.CHUNK)
    return sum(
        jobs.filter(position__range=(start, start + rows.CHUNK - 1))._raw_delete(rows.alias()) for start in starts
    )
