"""Retry: failed and cancelled jobs run again, and a batch that had ended is re-opened for another round.

A retry of all failed jobs of a large batch goes through the rows once, by position, in chunks. The position stands on
the batch: it cannot end meanwhile, and where the process dies the coordinator goes on from there. A job that failed by
its child batch is not run again: the retry goes on inside that child, in the same way.
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
from . import finishing, repairing
from .creating import wake_on_commit
from .finishing import Tally
from .rounds import WAITING_AGAIN, Below, climb, put_back, reopen

if TYPE_CHECKING:
    from ..models import Batch, BatchJob


_AGAIN: dict[str, Any] = {
    "status": JobStatus.CREATED,
    "attempts": 0,
    "losses": 0,
    "started_at": None,
    "finished_at": None,
    "waited_at": None,
    "returned_batch": None,
    "result_text": None,
    "error_type": "",
    "error": "",
    "traceback": "",
    "fingerprint": "",
    "worker": "",
}
_NEEDED = (
    "batch_id", "callback_of_id", "position", "dispatch", "status", "waited_at", "fingerprint", "error_type",
)  # fmt: skip
PATIENCE = 5.0
"""Seconds for which a retry waits for child batches that somebody else holds locked."""
PAUSE = 0.05
LIMIT = 500
"""Retries of one look."""


def retry_failed(batch_id: UUID, include_cancelled: bool = False) -> int:
    """Runs the failed jobs again (and the cancelled ones), and the failed callbacks of the round.

    Returns how many rows of this batch this call put back; what is below them follows. Two calls at once share the
    work. Raises `BatchCancelled` while a cancel is under way here or where a batch above was cancelled.
    """
    with database.atomic():
        batch = _lock(batch_id)
        if batch is None or not (_join(batch, include_cancelled) or _begin(batch, include_cancelled)):
            return 0
        climb(batch)
        # In this transaction: after its commit the coordinator would go on, and this call would have done nothing.
        total, more = _next_chunk(batch)
    count, deadline = total, time.monotonic() + PATIENCE
    while more and (count or time.monotonic() < deadline):  # the coordinator goes on with what somebody holds locked
        if not count:
            time.sleep(PAUSE)
        count, more = retry_next_chunk(batch_id)
        total += count
    return total


def retry_next_chunk(batch_id: UUID, *, skip_locked: bool = False) -> tuple[int, bool]:
    """One chunk of a retry of all failed jobs: how many rows it put back, and whether there are more."""
    with database.atomic():
        batch = database.lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)
        return (0, False) if batch is None else _next_chunk(batch)


def _next_chunk(batch: "Batch") -> tuple[int, bool]:
    if batch.retry_position is None or batch.deleting_at:
        return 0, False
    total, more = 0, False
    if not batch.finished_at:
        failed = database.jobs().filter(batch=batch, status__in=_statuses(batch.retry_cancelled))
        chunk = _chunk(failed.filter(position__gte=batch.retry_position))
        total, held = _put_back(batch, chunk, batch.retry_cancelled)
        more = held is not None or len(chunk) == database.CHUNK
        last = held.position if held else chunk[-1].position + 1 if chunk else batch.retry_position
    if not more:
        chunk = _chunk(_failed_callbacks(batch, batch.retry_cancelled))
        callbacks, held = _put_back(batch, chunk, batch.retry_cancelled)
        total, more, last = total + callbacks, held is not None, batch.total
    batch.retry_position = last if more else None
    database.batches().filter(pk=batch.pk).update(retry_position=batch.retry_position)
    if not more:
        finishing.write([Tally(batch)], timezone.now())
    wake_on_commit()
    return total, more


def continue_retries() -> None:
    """Goes on with retries that were cut off, or have come down from a batch above: level by level, a chunk each.

    For `rows.LONG` at most; the next call goes on.
    """
    seen: set[UUID] = set()
    until = time.monotonic() + database.TIME_BUDGET
    while new := set(unfinished()) - seen:
        for batch_id in new:
            with repairing.contain_errors(batch_id):
                retry_next_chunk(batch_id, skip_locked=True)
            seen.add(batch_id)
            if time.monotonic() > until:
                return


def unfinished() -> list[UUID]:
    """Batches whose retry was cut off half-way, or is under way elsewhere."""
    found = database.batches().filter(retry_position__isnull=False)
    return list(found.values_list("pk", flat=True)[:LIMIT])


def retry_jobs(chosen: "QuerySet[BatchJob]") -> int:
    """Runs the chosen jobs and callbacks again, those that failed or were cancelled; returns how many.

    Raises `BatchCancelled` as `retry_failed`, and `BatchError` where a child batch is held locked for long.
    """
    # The keys of a slice once: asked again after the first of them are put back, it would give the next ones.
    keys: Any = list(chosen.values_list("pk", flat=True)) if chosen.query.is_sliced else chosen.values("pk")
    again = database.jobs().filter(pk__in=keys, status__in=_statuses(include_cancelled=True))
    jobs, callbacks = again.filter(batch__isnull=False), again.filter(batch=None)
    total = 0
    for batch_id in list(jobs.order_by().values_list("batch_id", flat=True).distinct()):
        total += _retry_chosen(batch_id, jobs.filter(batch=batch_id))
    for batch_id in list(callbacks.order_by().values_list("callback_of_id", flat=True).distinct()):
        total += _retry_chosen(batch_id, callbacks.filter(callback_of=batch_id))
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
            count, held = _put_back(batch, chunk, include_cancelled=True)
            if count:
                climb(batch)
                wake_on_commit()
            else:
                transaction.set_rollback(True, using=database.alias())
        total += count
        position = held.position if held else chunk[-1].position + 1
        if held and not count:
            if time.monotonic() > deadline:
                raise BatchError(f"A child batch of job {held.pk} is held by another transaction: retry it later.")
            time.sleep(PAUSE)


def _begin(batch: "Batch", include_cancelled: bool) -> bool:
    """Marks the batch as being retried from its first row on; False where there is nothing to retry."""
    include_cancelled = include_cancelled or batch.gave_up
    if database.jobs().filter(batch=batch, status__in=_statuses(include_cancelled)).exists():
        batch.retry_position, batch.retry_cancelled = 0, include_cancelled
        reopen(batch)
        return True
    if not _failed_callbacks(batch, include_cancelled).exists():
        return False
    batch.retry_position = 0
    database.batches().filter(pk=batch.pk).update(retry_position=0, retry_cancelled=include_cancelled)
    return True


def _join(batch: "Batch", include_cancelled: bool) -> bool:
    """Whether a retry is under way; where this one asks for more, that begins again at the first row."""
    if batch.retry_position is not None and include_cancelled and not batch.retry_cancelled:
        batch.retry_position, batch.retry_cancelled = 0, True
        database.batches().filter(pk=batch.pk).update(retry_position=0, retry_cancelled=True)
    return batch.retry_position is not None


def _lock(batch_id: UUID) -> "Batch | None":
    batch = database.lock_batches([batch_id]).get(batch_id)
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


def _put_back(batch: "Batch", failed: "list[BatchJob]", include_cancelled: bool) -> "tuple[int, BatchJob | None]":
    """Makes ended rows of a locked batch wait for a claim again, or for their children.

    Returns how many, and the first one whose children cannot be retried now: that one and those after it are left.
    """
    below = Below.lock(failed)
    held = next((job for job in failed if not below.take(job)), None)
    free = failed[: failed.index(held)] if held else failed
    waiting = [job for job in free if below.of.get(job.pk)]
    below.retry(waiting, include_cancelled)
    put_back(batch, waiting, WAITING_AGAIN)
    # From now on it waits for its turn, not since it was added.
    put_back(batch, [job for job in free if not below.of.get(job.pk)], _AGAIN | {"due_at": timezone.now()})
    return len(free), held
