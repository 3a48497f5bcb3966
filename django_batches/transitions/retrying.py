"""Retry: failed and cancelled jobs run again, and a batch that had ended is re-opened for another round.

A retry of all failed jobs of a large batch goes through the rows once, by position, in chunks. The position stands on
the batch: it cannot end meanwhile, and where the process dies the coordinator goes on from there.
"""

from collections import defaultdict
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import IntegrityError
from django.db.models import Count, QuerySet
from django.utils import timezone

from ..exceptions import BatchCancelled, BatchExists
from ..states import BatchStatus, JobStatus
from . import counting, rows
from .aggregating import count_failures
from .counting import Tally
from .creating import poke_on_commit

if TYPE_CHECKING:
    from ..models import Batch, BatchJob

_AGAIN: dict[str, Any] = {
    "status": JobStatus.CREATED,
    "attempts": 0,
    "losses": 0,
    "due_at": None,
    "started_at": None,
    "finished_at": None,
    "result_text": None,
    "error_type": "",
    "error": "",
    "traceback": "",
    "fingerprint": "",
    "worker": "",
}


def retry_failed(batch_id: UUID, include_cancelled: bool = False) -> int:
    """Runs the failed jobs again (and the cancelled ones), and the failed callbacks of the round.

    Returns how many rows this call put back. Two calls at once share the work. Raises `BatchCancelled` while a cancel
    is still under way.
    """
    with rows.atomic():
        batch = _lock(batch_id)
        if batch is None:
            return 0
        if batch.retry_position is None:
            include_cancelled = include_cancelled or counting.has_given_up(batch)
            statuses = _statuses(include_cancelled)
            if rows.jobs().filter(batch=batch, status__in=statuses).exists():
                batch.retry_position, batch.retry_cancelled = 0, include_cancelled
                _reopen(batch)
        put_back = _retry_callbacks(batch)
        poke_on_commit()
    total = put_back
    while True:
        put_back, more = carry_on_retrying(batch_id)
        total += put_back
        if not more:
            return total


def carry_on_retrying(batch_id: UUID, *, skip_locked: bool = False) -> tuple[int, bool]:
    """One chunk of a retry of all failed jobs: how many rows it put back, and whether there are more."""
    with rows.atomic():
        batch = rows.lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)
        if batch is None or batch.retry_position is None:
            return 0, False
        candidates = rows.jobs().filter(batch=batch, status__in=_statuses(batch.retry_cancelled))
        chunk = candidates.filter(position__gte=batch.retry_position).order_by("position")[: rows.CHUNK]
        found = list(chunk.values_list("pk", "position"))
        put_back = _put_back(batch, [pk for pk, _ in found], batch.retry_cancelled)
        more = len(found) == rows.CHUNK
        batch.retry_position = found[-1][1] + 1 if more else None
        rows.batches().filter(pk=batch_id).update(retry_position=batch.retry_position)
        if not more:
            counting.write([Tally(batch)], timezone.now())
        poke_on_commit()
    return put_back, more


def unfinished_retries() -> list[UUID]:
    """Batches whose retry was cut off half-way, or is under way elsewhere."""
    return list(
        rows.batches().filter(finished_at=None, retry_position__isnull=False).values_list("pk", flat=True)[:100]
    )


def retry_jobs(chosen: "QuerySet[BatchJob]") -> int:
    """Runs the chosen jobs and callbacks again, those that failed or were cancelled; returns how many."""
    statuses = _statuses(include_cancelled=True)
    # The keys of a slice once: asked again after the first of them are put back, it would give the next ones.
    keys: Any = list(chosen.values_list("pk", flat=True)) if chosen.query.is_sliced else chosen.values("pk")
    again = rows.jobs().filter(pk__in=keys, status__in=statuses)
    total = 0
    for batch_id in list(again.filter(batch__isnull=False).order_by().values_list("batch_id", flat=True).distinct()):
        position = 0
        while True:
            with rows.atomic():
                batch = _lock(batch_id)
                found = list(
                    again.filter(batch=batch_id, position__gte=position)
                    .order_by("position")
                    .values_list("pk", "position")[: rows.CHUNK]
                )
                if batch is None or not found:
                    break
                _reopen(batch)
                total += _put_back(batch, [pk for pk, _ in found], include_cancelled=True)
                position = found[-1][1] + 1
                poke_on_commit()
    for batch_id in list(again.filter(batch=None).order_by().values_list("callback_of_id", flat=True).distinct()):
        with rows.atomic():
            batch = _lock(batch_id)
            if batch is not None:
                total += _retry_callbacks(batch, again)
                poke_on_commit()
    return total


def _lock(batch_id: UUID) -> "Batch | None":
    batch = rows.lock_batches([batch_id]).get(batch_id)
    if batch is not None and batch.cancelled_at and not batch.finished_at:
        raise BatchCancelled(f"Batch {batch_id} is being cancelled: retry once it has ended.")
    return batch


def _statuses(include_cancelled: bool) -> list[JobStatus]:
    return [JobStatus.FAILED, JobStatus.CANCELLED] if include_cancelled else [JobStatus.FAILED]


def _reopen(batch: "Batch") -> None:
    """Writes the position of the retry and, where the batch had ended, opens another round."""
    changes: dict[str, Any] = {"retry_position": batch.retry_position, "retry_cancelled": batch.retry_cancelled}
    if batch.finished_at:
        changes |= {
            "status": BatchStatus.RUNNING,
            "finished_at": None,
            "round": batch.round + 1,
            "first_failure_id": None,
            "cancelled_at": None,
            "reason": "",
            "sealed_at": batch.sealed_at or timezone.now(),
        }
    for name, value in changes.items():
        setattr(batch, name, value)
    try:
        with rows.atomic():
            rows.batches().filter(pk=batch.pk).update(**changes)
    except IntegrityError:
        raise BatchExists(f"Another batch with the key {batch.key!r} has not ended yet: retry once it has.") from None


def _put_back(batch: "Batch", ids: list[UUID], include_cancelled: bool) -> int:
    """Makes the ended rows wait for a claim again and moves the counters and the failure groups with them."""
    if not ids:
        return 0
    statuses = _statuses(include_cancelled)
    ended = rows.jobs().filter(pk__in=ids, status__in=statuses)
    by_group = ended.order_by().values_list("status", "fingerprint", "error_type").annotate(count=Count("pk"))
    tally, groups = Tally(batch), []
    counts: dict[str, int] = defaultdict(int)
    for status, fingerprint, error_type, count in by_group:
        counts[status] += count
        if status == JobStatus.FAILED:
            groups.append([batch.pk, fingerprint, error_type, "", -count])
    for status, count in counts.items():
        tally.reopened(status, count)
    ended.update(**_AGAIN, round=batch.round)
    count_failures(groups)
    counting.write([tally], timezone.now())
    return sum(counts.values())


def _retry_callbacks(batch: "Batch", chosen: "QuerySet[BatchJob] | None" = None) -> int:
    """Puts failed callbacks back: those of the batch's round, or the chosen ones."""
    failed = rows.jobs().filter(callback_of=batch, status__in=_statuses(include_cancelled=chosen is not None))
    failed = failed.filter(pk__in=chosen.values("pk")) if chosen is not None else failed.filter(round=batch.round)
    count = rows.jobs().filter(pk__in=list(failed.values_list("pk", flat=True))).update(**_AGAIN)
    if count:
        counting.write([Tally(batch, open_callbacks=count)], timezone.now())
    return count
