"""Retries failed and cancelled jobs; a batch that has ended is reopened for another round.

A retry of all failed jobs goes through the rows of a batch once, by position, in chunks. The batch keeps the position:
it cannot end meanwhile, and after a crash the coordinator continues from there. A job that failed because of its child
batch does not run again: the retry continues inside that child, in the same way.
"""

import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from .. import database
from ..exceptions import BatchCancelled, BatchError
from ..states import JobStatus
from .batch_status import Tally, update_batches
from .creating import wake_on_commit
from .rounds import WAITING_AGAIN, RetriedChildren, await_again, reopen, reset_jobs
from .steps import contain_errors, level_by_level, within_budget

if TYPE_CHECKING:
    from ..models import Batch, BatchJob

_NEW: dict[str, Any] = {
    "status": JobStatus.CREATED,
    **dict.fromkeys(("attempts", "losses"), 0),
    **dict.fromkeys(("started_at", "finished_at", "waited_at", "returned_batch", "result_text")),
    **dict.fromkeys(("error_type", "error", "traceback", "fingerprint", "worker"), ""),
}
_NEEDED = ("batch_id", "callback_of_id", "position", "dispatch", "status", "waited_at", "fingerprint", "error_type")
PATIENCE, PAUSE = 5.0, 0.05
"""Seconds for which a retry waits for child batches that another transaction has locked, and between two attempts."""
LIMIT = 500  # retries that one query of the coordinator finds


def retry_failed(batch_id: UUID, include_cancelled: bool = False) -> int:
    """Retries the failed jobs of a batch (and the cancelled ones), and the failed callbacks of its round.

    Returns how many rows of this batch this call reset; their child batches follow. Two calls at once share the work.
    Raises `BatchCancelled` if the batch is being cancelled or a batch above it was, and `BatchError` if it is being
    deleted or no job waits for it any more.
    """
    with database.atomic():
        batch = _lock(batch_id)
        if batch is None or not _begin(batch, include_cancelled):
            return 0
        await_again(batch)
        # In this transaction: after its commit the coordinator may continue, and this call would return 0.
        total, more = _next_chunk(batch)
    count, deadline = total, time.monotonic() + PATIENCE
    while more and (count or time.monotonic() < deadline):  # the coordinator retries what stays locked
        if not count:
            time.sleep(PAUSE)
        count, more = retry_next_chunk(batch_id)
        total += count
    return total


def retry_next_chunk(batch_id: UUID, *, skip_locked: bool = False) -> tuple[int, bool]:
    """Retries the next chunk; returns how many rows it reset, and whether there are more."""
    with database.atomic():
        return _next_chunk(database.lock_batch(batch_id, skip_locked=skip_locked))


def _next_chunk(batch: "Batch | None") -> tuple[int, bool]:
    if batch is None or batch.retry_position is None or batch.deleting_at:
        return 0, False
    total, more = 0, False
    if not batch.finished_at:
        failed = database.jobs().filter(batch=batch, status__in=_statuses(batch.retry_cancelled))
        chunk = _chunk(failed.filter(position__gte=batch.retry_position))
        total, blocked = _retry_rows(batch, chunk, batch.retry_cancelled)
        more = blocked is not None or len(chunk) == database.CHUNK
        position = blocked.position if blocked else chunk[-1].position + 1 if chunk else batch.retry_position
    if not more:
        chunk = _chunk(_failed_callbacks(batch, batch.retry_cancelled))
        callbacks, blocked = _retry_rows(batch, chunk, batch.retry_cancelled)
        total, more, position = total + callbacks, blocked is not None, batch.total
    database.write_fields(batch, retry_position=position if more else None)
    if not more:
        update_batches([Tally(batch)], timezone.now())
    wake_on_commit()
    return total, more


def continue_retries() -> None:
    """Retries a chunk of each unfinished retry, level by level, for `TIME_BUDGET` seconds; the next call continues."""
    for batch_id in within_budget(level_by_level(unfinished_retries)):
        with contain_errors(batch_id):
            retry_next_chunk(batch_id, skip_locked=True)


def unfinished_retries() -> list[UUID]:
    """Batches of which a retry has begun: interrupted ones, those of other processes, and those of a batch above."""
    return list(database.batches().filter(retry_position__isnull=False).values_list("pk", flat=True)[:LIMIT])


def retry_jobs(chosen: "QuerySet[BatchJob]") -> int:
    """Retries those of the chosen jobs and callbacks that failed or were cancelled; returns how many.

    Raises what `retry_failed` raises, and `BatchError` if a child batch stays locked for `PATIENCE` seconds.
    """
    # A slice is evaluated once: after its first rows are reset, it would return the next ones.
    keys: Any = list(chosen.values_list("pk", flat=True)) if chosen.query.is_sliced else chosen.values("pk")
    again = database.jobs().filter(pk__in=keys, status__in=_statuses(include_cancelled=True))
    total = 0
    for owner in ("batch_id", "callback_of_id"):
        ids = again.exclude(**{owner: None}).order_by().values_list(owner, flat=True).distinct()
        total += sum(_retry_chosen(batch_id, again.filter(**{owner: batch_id})) for batch_id in list(ids))
    return total


def _retry_chosen(batch_id: UUID, chosen: "QuerySet[BatchJob]") -> int:
    total, position, deadline = 0, 0, time.monotonic() + PATIENCE
    while True:
        with database.atomic():
            batch = _lock(batch_id)
            chunk = _chunk(chosen.filter(position__gte=position))
            if batch is None or not chunk:
                return total
            if chunk[0].batch_id:
                reopen(batch)
            count, blocked = _retry_rows(batch, chunk, include_cancelled=True)
            if count:
                await_again(batch)
                wake_on_commit()
            else:
                transaction.set_rollback(True, using=database.alias())
        total += count
        position = blocked.position if blocked else chunk[-1].position + 1
        if blocked and not count:
            if time.monotonic() > deadline:
                raise BatchError(f"A child batch of job {blocked.pk} is locked by another transaction: retry later.")
            time.sleep(PAUSE)


def _begin(batch: "Batch", include_cancelled: bool) -> bool:
    """Marks the batch as being retried from its first row on; False if there is nothing to retry."""
    include_cancelled = include_cancelled or batch.gave_up
    # Joins a retry that has begun, unless only this one takes cancelled jobs: then it starts at the first row again.
    if batch.retry_position is not None and (batch.retry_cancelled or not include_cancelled):
        return True
    if database.jobs().filter(batch=batch, status__in=_statuses(include_cancelled)).exists():
        batch.retry_position, batch.retry_cancelled = 0, include_cancelled
        reopen(batch)
        return True
    if not _failed_callbacks(batch, include_cancelled).exists():
        return False
    database.write_fields(batch, retry_position=0, retry_cancelled=include_cancelled)
    return True


def _lock(batch_id: UUID) -> "Batch | None":
    batch = database.lock_batch(batch_id)
    if batch is not None and batch.cancelled_at and not batch.finished_at:
        raise BatchCancelled(f"Batch {batch_id} is being cancelled: retry once it has ended.", batch_id=batch_id)
    if batch is not None and batch.deleting_at:
        raise BatchError(f"Batch {batch_id} is being deleted.")
    return batch


def _statuses(include_cancelled: bool) -> list[JobStatus]:
    return [JobStatus.FAILED, JobStatus.CANCELLED] if include_cancelled else [JobStatus.FAILED]


def _failed_callbacks(batch: "Batch", include_cancelled: bool) -> "QuerySet[BatchJob]":
    return database.jobs().filter(callback_of=batch, round=batch.round, status__in=_statuses(include_cancelled))


def _chunk(failed: "QuerySet[BatchJob]") -> "list[BatchJob]":
    return list(failed.only(*_NEEDED).order_by("position")[: database.CHUNK])


def _retry_rows(batch: "Batch", failed: "list[BatchJob]", include_cancelled: bool) -> "tuple[int, BatchJob | None]":
    """Resets rows up to the first whose children cannot be retried now. Returns how many, and that row."""
    below = RetriedChildren(failed)
    blocked = next((job for job in failed if not below.reserve(job)), None)
    free = failed[: failed.index(blocked)] if blocked else failed
    waiting = [job for job in free if below.by_job.get(job.pk)]
    below.retry(waiting, include_cancelled)
    reset_jobs(batch, waiting, WAITING_AGAIN)
    # due_at: its lag counts from now, not from when it was added.
    reset_jobs(batch, [job for job in free if not below.by_job.get(job.pk)], _NEW | {"due_at": timezone.now()})
    return len(free), blocked
