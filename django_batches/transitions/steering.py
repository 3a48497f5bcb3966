"""Cancel, pause and resume: of a batch, and cancel of one job.

A job that is in RQ may be running, which the database cannot know. It ends only by an outcome; what keeps it from
starting is the set of held batches, which the take script of the executors asks.
"""

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from django.utils import timezone

from ..states import WAITING_HERE, JobStatus
from . import counting, rows
from .aggregating import count_ended
from .counting import Tally
from .creating import poke_on_commit

if TYPE_CHECKING:
    from ..models import Batch


def cancel(batch_id: UUID, reason: str = "", *, skip_locked: bool = False) -> int:
    """Cancels a batch: what waits here ends at once, what runs finishes and counts as what it becomes.

    Returns how many jobs this call ended; 0 where the batch has ended before. In chunks of their own transactions
    (unless the caller has one open); where this process dies between two, the coordinator goes on.
    """
    now = timezone.now()
    with rows.atomic():
        batch = rows.lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)
        if batch is None or batch.finished_at:
            return 0
        if not batch.cancelled_at:
            batch.cancelled_at, batch.reason, batch.retry_position = now, reason, None
            rows.batches().filter(pk=batch_id).update(cancelled_at=now, reason=reason, retry_position=None)
        ended = _cancel_chunk(batch, now)
        poke_on_commit(batch_id)
    total = ended
    while ended == rows.CHUNK:
        ended = carry_on_cancelling(batch_id, skip_locked=skip_locked)
        total += ended
    return total


def carry_on_cancelling(batch_id: UUID, *, skip_locked: bool = False) -> int:
    """One chunk of a cancel; returns how many jobs it ended."""
    with rows.atomic():
        batch = rows.lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)
        if batch is None or batch.finished_at or not batch.cancelled_at:
            return 0
        return _cancel_chunk(batch, timezone.now())


def _cancel_chunk(batch: "Batch", now: datetime) -> int:
    waiting = rows.jobs().filter(batch=batch, status__in=WAITING_HERE)
    ids = list(waiting.order_by("position").values_list("pk", flat=True)[: rows.CHUNK])
    ended = _cancel_rows(ids, now)
    tally = Tally(batch)
    tally.ended(JobStatus.CANCELLED, ended)
    if ended:
        count_ended({batch.pk: (0, 0, ended)}, now)
    counting.write([tally], now)
    return ended


def _cancel_rows(ids: list[UUID], now: datetime) -> int:
    """Ends those of the jobs that wait here; returns how many. Their batch is locked."""
    waiting = rows.jobs().filter(pk__in=ids, status__in=WAITING_HERE)
    return waiting.update(status=JobStatus.CANCELLED, finished_at=now, due_at=None)


def cancel_job(job_id: UUID) -> bool:
    """Cancels one job that waits here; False where it is in RQ or has ended. Its batch cannot succeed any more."""
    now = timezone.now()
    batch_id = rows.jobs().filter(pk=job_id).values_list("batch_id", flat=True).first()
    with rows.atomic():
        batch = rows.lock_batches([batch_id]).get(batch_id) if batch_id else None
        if batch is None:
            return _cancel_callback(job_id, now)
        won = _cancel_rows([job_id], now)
        if won:
            tally = Tally(batch)
            tally.ended(JobStatus.CANCELLED)
            count_ended({batch.pk: (0, 0, 1)}, now)
            counting.write([tally], now)
            poke_on_commit()
        return bool(won)


def _cancel_callback(job_id: UUID, now: datetime) -> bool:
    owner = rows.jobs().filter(pk=job_id).values_list("callback_of_id", flat=True).first()
    batch = rows.lock_batches([owner]).get(owner) if owner else None
    if batch is None:
        return False
    won = _cancel_rows([job_id], now)
    if won:
        counting.write([Tally(batch, open_callbacks=-1)], now)
    return bool(won)


def pause(batch_id: UUID) -> bool:
    """Holds the jobs of a batch; running ones finish. False where it is paused already or has ended."""
    with rows.atomic():
        won = rows.batches().filter(pk=batch_id, is_paused=False, finished_at=None).update(is_paused=True)
        if won:
            poke_on_commit(batch_id)
    return bool(won)


def resume(batch_id: UUID) -> bool:
    """Lets a paused batch go on; False where it is not paused."""
    with rows.atomic():
        won = rows.batches().filter(pk=batch_id, is_paused=True).update(is_paused=False)
        if won:
            poke_on_commit()
    return bool(won)


def abandon(created_before: datetime, seconds: int) -> int:
    """Cancels open batches to which nobody has added since `created_before`: their creator has died."""
    ids = abandoned(created_before)
    reason = f"Its creator added nothing for {seconds} s and never sealed it: it must have died."
    for batch_id in ids:
        cancel(batch_id, reason, skip_locked=True)
    return len(ids)


def mark_overdue(now: datetime) -> int:
    """Marks batches that have not ended by their deadline and tells their failure event; returns how many."""
    late = rows.batches().filter(finished_at=None, overdue_at=None, deadline_at__lte=now)
    ids = list(late.values_list("pk", flat=True)[:100])
    for batch_id in ids:
        with rows.atomic():
            batch = rows.lock_batches([batch_id], skip_locked=True).get(batch_id)
            if batch is not None and not batch.finished_at and not batch.overdue_at:
                rows.batches().filter(pk=batch_id).update(overdue_at=now)
                counting.write([Tally(batch, is_overdue=True)], now)
    return len(ids)


def abandoned(created_before: datetime) -> list[UUID]:
    """The batches that `abandon` cancels."""
    forgotten = rows.batches().filter(sealed_at=None, finished_at=None, cancelled_at=None, grown_at__lt=created_before)
    return list(forgotten.values_list("pk", flat=True)[:100])


def to_hold() -> set[UUID]:
    """The batches whose jobs in RQ must not be started."""
    alive = rows.batches().filter(finished_at=None)
    held = alive.filter(is_paused=True) | alive.filter(cancelled_at__isnull=False)
    return set(held.values_list("pk", flat=True))


def unfinished_cancels() -> list[UUID]:
    """Cancelled batches of which jobs still wait here: cut off half-way, or begun by too many failures."""
    cut_off = rows.batches().filter(finished_at=None, cancelled_at__isnull=False)
    waiting = rows.jobs().filter(status__in=WAITING_HERE).values("batch_id")
    return list(cut_off.filter(pk__in=waiting).values_list("pk", flat=True)[:100])


def carry_all_on() -> None:
    """A chunk of each cancel that is not through."""
    for batch_id in unfinished_cancels():
        carry_on_cancelling(batch_id, skip_locked=True)
