"""Cancel, pause and resume: of a batch, and cancel of one job.

A job that is in RQ may be running, which the database cannot know. It ends only by an outcome; what keeps it from
starting is the set of held batches, which the take script of the executors asks.
"""

import time
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from django.utils import timezone

from .. import database
from ..states import WAITING_HERE, JobStatus
from . import finishing, repairing
from .creating import wake_on_commit
from .finishing import Tally
from .statistics import count_ended

if TYPE_CHECKING:
    from ..models import Batch


def cancel(batch_id: UUID, reason: str = "") -> int:
    """Cancels a batch: what waits here ends at once, what runs finishes and counts as what it becomes.

    Returns how many jobs this call ended; 0 where the batch has ended before. In chunks of their own transactions
    (unless the caller has one open); where this process dies between two, the coordinator goes on.
    """
    ended = total = begin_cancelling(batch_id, reason)
    while ended == database.CHUNK:
        ended = cancel_next_chunk(batch_id)
        total += ended
    return total


def begin_cancelling(
    batch_id: UUID, reason: str, *, skip_locked: bool = False, quiet_since: datetime | None = None
) -> int:
    """The first chunk of a cancel, all that the coordinator does of one at a time; returns how many jobs it ended.

    With `quiet_since` only where the batch is open still, and nothing was added since that moment.
    """
    now = timezone.now()
    with database.atomic():
        batch = database.lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)
        if batch is None or batch.finished_at:
            return 0
        if quiet_since and (batch.sealed_at or batch.grown_at >= quiet_since):
            return 0
        if not batch.cancelled_at:
            changes = {"cancelled_at": now, "reason": reason, "retry_position": None, "gave_up": False}
            for name, value in changes.items():
                setattr(batch, name, value)
            database.batches().filter(pk=batch_id).update(**changes)
        ended = _cancel_chunk(batch, now)
        wake_on_commit(batch_id)
    return ended


def cancel_next_chunk(batch_id: UUID, *, skip_locked: bool = False) -> int:
    """One chunk of a cancel; returns how many jobs it ended."""
    with database.atomic():
        batch = database.lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)
        if batch is None or batch.finished_at or not batch.cancelled_at:
            return 0
        return _cancel_chunk(batch, timezone.now())


def _cancel_chunk(batch: "Batch", now: datetime) -> int:
    waiting = database.jobs().filter(batch=batch, status__in=WAITING_HERE)
    ids = list(waiting.order_by("position").values_list("pk", flat=True)[: database.CHUNK])
    ended = _cancel_rows(ids, now)
    tally = Tally(batch)
    tally.ended(JobStatus.CANCELLED, ended)
    if ended:
        count_ended({batch.pk: (0, 0, ended)}, now)
    finishing.write([tally], now)
    return ended


def _cancel_rows(ids: list[UUID], now: datetime) -> int:
    """Ends those of the jobs that wait here; returns how many. Their batch is locked."""
    waiting = database.jobs().filter(pk__in=ids, status__in=WAITING_HERE)
    return waiting.update(status=JobStatus.CANCELLED, finished_at=now, due_at=None)


def cancel_job(job_id: UUID) -> bool:
    """Cancels one job that waits here; False where it is in RQ or has ended. Its batch cannot succeed any more."""
    now = timezone.now()
    batch_id = database.jobs().filter(pk=job_id).values_list("batch_id", flat=True).first()
    with database.atomic():
        batch = database.lock_batches([batch_id]).get(batch_id) if batch_id else None
        if batch is None:
            return _cancel_callback(job_id, now)
        won = _cancel_rows([job_id], now)
        if won:
            tally = Tally(batch)
            tally.ended(JobStatus.CANCELLED)
            count_ended({batch.pk: (0, 0, 1)}, now)
            finishing.write([tally], now)
            wake_on_commit()
        return bool(won)


def _cancel_callback(job_id: UUID, now: datetime) -> bool:
    owner = database.jobs().filter(pk=job_id).values_list("callback_of_id", flat=True).first()
    batch = database.lock_batches([owner]).get(owner) if owner else None
    if batch is None:
        return False
    won = _cancel_rows([job_id], now)
    if won:
        finishing.write([Tally(batch, open_callbacks=-1)], now)
    return bool(won)


def pause(batch_id: UUID) -> bool:
    """Holds the jobs of a batch; running ones finish. False where it is paused already or has ended."""
    with database.atomic():
        won = database.batches().filter(pk=batch_id, is_paused=False, finished_at=None).update(is_paused=True)
        if won:
            wake_on_commit(batch_id)
    return bool(won)


def resume(batch_id: UUID) -> bool:
    """Lets a paused batch go on; False where it is not paused."""
    with database.atomic():
        won = database.batches().filter(pk=batch_id, is_paused=True).update(is_paused=False)
        if won:
            wake_on_commit()
    return bool(won)


def abandon(quiet_since: datetime, seconds: int) -> int:
    """Cancels open batches to which nobody has added since `quiet_since`: their creator has died."""
    ids = abandoned(quiet_since)
    reason = f"Its creator added nothing for {seconds} s and never sealed it: it must have died."
    until = time.monotonic() + database.TIME_BUDGET
    for batch_id in ids:
        with repairing.contain_errors(batch_id):
            begin_cancelling(batch_id, reason, skip_locked=True, quiet_since=quiet_since)
        if time.monotonic() > until:
            break  # the others are found again
    return len(ids)


def mark_overdue(now: datetime) -> int:
    """Marks batches that have not ended by their deadline and tells their failure event; returns how many."""
    late = database.batches().filter(finished_at=None, overdue_at=None, deadline_at__lte=now)
    ids = list(late.values_list("pk", flat=True)[:100])
    for batch_id in ids:
        with repairing.contain_errors(batch_id), database.atomic():
            batch = database.lock_batches([batch_id], skip_locked=True).get(batch_id)
            if batch is not None and not batch.finished_at and not batch.overdue_at:
                database.batches().filter(pk=batch_id).update(overdue_at=now)
                finishing.write([Tally(batch, is_overdue=True)], now)
    return len(ids)


def abandoned(quiet_since: datetime) -> list[UUID]:
    """The batches that `abandon` cancels."""
    forgotten = database.batches().filter(sealed_at=None, finished_at=None, cancelled_at=None, grown_at__lt=quiet_since)
    return list(forgotten.values_list("pk", flat=True)[:100])


def batches_on_hold() -> set[UUID]:
    """The batches whose jobs in RQ must not be started."""
    alive = database.batches().filter(finished_at=None)
    held = alive.filter(is_paused=True) | alive.filter(cancelled_at__isnull=False)
    return set(held.values_list("pk", flat=True))


def unfinished_cancels() -> list[UUID]:
    """Cancelled batches of which jobs still wait here: cut off half-way, or begun by too many failures."""
    cut_off = database.batches().filter(finished_at=None, cancelled_at__isnull=False)
    waiting = database.jobs().filter(status__in=WAITING_HERE).values("batch_id")
    return list(cut_off.filter(pk__in=waiting).values_list("pk", flat=True)[:100])


def continue_cancels() -> int:
    """A chunk of each cancel that is not through; returns how many jobs that ended."""
    ended, until = 0, time.monotonic() + database.TIME_BUDGET
    for batch_id in unfinished_cancels():
        with repairing.contain_errors(batch_id):
            ended += cancel_next_chunk(batch_id, skip_locked=True)
        if time.monotonic() > until:
            break  # the next poll goes on: outcomes come first
    return ended
