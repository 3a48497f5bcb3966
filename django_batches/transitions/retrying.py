"""Retries failed and cancelled jobs; a batch that has ended is reopened for another round.

A retry of all failed jobs passes through the rows of a batch once, in chunks, ordered by position. `retry_position` in
the batch's row records the progress: the batch cannot end until the retry is done, and after a crash the coordinator
continues from there. A job that failed because of its child batch does not run again; the child is retried instead.
"""

import time
from typing import Any
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

_RUN_AGAIN: dict[str, Any] = {
    "status": JobStatus.CREATED,
    **dict.fromkeys(("attempts", "losses"), 0),
    **dict.fromkeys(("started_at", "finished_at", "waited_at", "returned_batch", "result_text")),
    **dict.fromkeys(("error_type", "error", "traceback", "fingerprint", "worker"), ""),
}
_NEEDED = ("batch_id", "callback_of_id", "position", "dispatch", "status", "waited_at", "fingerprint", "error_type")
PATIENCE, PAUSE = 5.0, 0.05
"""Seconds that a retry waits at most for child batches locked by another transaction, and seconds between two tries."""
LIMIT = 500  # the most unfinished retries that one query of the coordinator returns


def retry_failed(batch_id: UUID, include_cancelled: bool = False) -> int:
    """Retries the failed jobs of a batch (optionally also cancelled ones), and the failed callbacks of its round.

    Returns how many rows of this batch this call reset. The coordinator then retries the child batches of these rows.
    Concurrent calls share the work. Raises `BatchCancelled` if the batch is being cancelled or a batch above it was,
    and `BatchError` if the batch is being deleted, or is a child batch for which no job waits any more.
    """
    with database.atomic():
        batch = _lock_for_retry(batch_id)
        if batch is None or not _begin_retry(batch, include_cancelled):
            return 0
        await_again(batch)
        # Reset the first chunk before the commit: after it, the coordinator might do so, and this call would return 0.
        total, more = _next_chunk(batch)
    count, deadline = total, time.monotonic() + PATIENCE
    while more and (count or time.monotonic() < deadline):  # the coordinator retries rows that stay locked
        if not count:
            time.sleep(PAUSE)
        count, more = retry_next_chunk(batch_id)
        total += count
    return total


def retry_next_chunk(batch_id: UUID, *, skip_locked: bool = False) -> tuple[int, bool]:
    """Retries the next chunk of rows. Returns how many rows it reset, and whether more rows are left."""
    with database.atomic():
        return _next_chunk(database.lock_batch(batch_id, skip_locked=skip_locked))


def _next_chunk(batch: "database.Batch | None") -> tuple[int, bool]:
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
    """Retries one chunk in each batch of `unfinished_retries()`, level by level, for up to `TIME_BUDGET` seconds."""
    for batch_id in within_budget(level_by_level(unfinished_retries)):
        with contain_errors(batch_id):
            retry_next_chunk(batch_id, skip_locked=True)


def unfinished_retries() -> list[UUID]:
    """Returns batches with a retry under way: interrupted, running in another process, or begun by a batch above."""
    return list(database.batches().filter(retry_position__isnull=False).values_list("pk", flat=True)[:LIMIT])


def retry_jobs(chosen: "QuerySet[database.BatchJob]") -> int:
    """Retries those of the chosen jobs and callbacks that failed or were cancelled, and returns how many.

    Raises the same errors as `retry_failed()`, and `BatchError` if a child batch stays locked for `PATIENCE` seconds.
    """
    # Evaluate a sliced queryset only once: after its rows are reset, the same slice might return further rows.
    keys: Any = list(chosen.values_list("pk", flat=True)) if chosen.query.is_sliced else chosen.values("pk")
    again = database.jobs().filter(pk__in=keys, status__in=_statuses(include_cancelled=True))
    total = 0
    for owner in ("batch_id", "callback_of_id"):
        ids = again.exclude(**{owner: None}).order_by().values_list(owner, flat=True).distinct()
        total += sum(_retry_chosen(batch_id, again.filter(**{owner: batch_id})) for batch_id in list(ids))
    return total


def _retry_chosen(batch_id: UUID, chosen: "QuerySet[database.BatchJob]") -> int:
    total, position, deadline = 0, 0, time.monotonic() + PATIENCE
    while True:
        with database.atomic():
            batch = _lock_for_retry(batch_id)
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
                raise BatchError(f"A child batch of job {blocked.pk} is locked by another transaction. Retry later.")
            time.sleep(PAUSE)


def _begin_retry(batch: "database.Batch", include_cancelled: bool) -> bool:
    """Starts a retry of the batch at its first row, or joins one under way. False if there is nothing to retry."""
    include_cancelled = include_cancelled or batch.gave_up
    # Join the retry under way, unless it leaves out cancelled jobs that this one includes: then restart at row 0.
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


def _lock_for_retry(batch_id: UUID) -> "database.Batch | None":
    batch = database.lock_batch(batch_id)
    if batch is not None and batch.cancelled_at and not batch.finished_at:
        raise BatchCancelled(f"Batch {batch_id} is being cancelled: retry once it has ended.", batch_id=batch_id)
    if batch is not None and batch.deleting_at:
        raise BatchError(f"Batch {batch_id} is being deleted.")
    return batch


def _statuses(include_cancelled: bool) -> list[JobStatus]:
    return [JobStatus.FAILED, JobStatus.CANCELLED] if include_cancelled else [JobStatus.FAILED]


def _failed_callbacks(batch: "database.Batch", include_cancelled: bool) -> "QuerySet[database.BatchJob]":
    return database.jobs().filter(callback_of=batch, round=batch.round, status__in=_statuses(include_cancelled))


def _chunk(failed: "QuerySet[database.BatchJob]") -> "list[database.BatchJob]":
    return list(failed.only(*_NEEDED).order_by("position")[: database.CHUNK])


def _retry_rows(
    batch: "database.Batch", failed: "list[database.BatchJob]", include_cancelled: bool
) -> "tuple[int, database.BatchJob | None]":
    """Resets rows up to the first one whose children cannot be retried now. Returns the number reset, and that row."""
    below = RetriedChildren(failed)
    blocked = next((job for job in failed if not below.reserve(job)), None)
    free = failed[: failed.index(blocked)] if blocked else failed
    waiting = [job for job in free if below.by_job.get(job.pk)]
    below.retry(waiting, include_cancelled)
    reset_jobs(batch, waiting, WAITING_AGAIN)
    # Set due_at, so that the lag of these jobs counts from the retry and not from the time when they were added.
    reset_jobs(batch, [job for job in free if not below.by_job.get(job.pk)], _RUN_AGAIN | {"due_at": timezone.now()})
    return len(free), blocked
