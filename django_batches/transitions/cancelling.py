"""Cancels, pauses and resumes batches; cancels single jobs.

The database cannot know whether a job that is in RQ runs. Such a job ends only by its outcome. Executors do not start
it if its batch is in `batches_on_hold`.
"""

from datetime import datetime
from uuid import UUID

from django.db.models import Q
from django.utils import timezone

from .. import database
from ..states import WAITING_HERE, JobStatus
from .batch_status import Tally, update_batches
from .creating import wake_on_commit
from .statistics import count_ended
from .steps import contain_errors, within_budget

LIMIT = 100  # batches that one query of the coordinator finds


def cancel(batch_id: UUID, reason: str = "") -> int:
    """Cancels a batch: its waiting jobs end now, its running jobs finish and count as usual.

    Returns how many jobs this call cancelled; 0 if the batch has ended. Commits chunk by chunk (unless the caller has
    opened a transaction); if this process dies in between, the coordinator continues.
    """
    ended = total = begin_cancel(batch_id, reason)
    while ended == database.CHUNK:
        ended = cancel_next_chunk(batch_id)
        total += ended
    return total


def begin_cancel(batch_id: UUID, reason: str, *, skip_locked: bool = False, quiet_since: datetime | None = None) -> int:
    """Marks a batch as cancelled and cancels the first chunk of its jobs; returns how many.

    With `quiet_since`, only if the batch is still open and has not grown since then.
    """
    now = timezone.now()
    with database.atomic():
        batch = database.lock_batch(batch_id, skip_locked=skip_locked)
        if batch is None or batch.finished_at:
            return 0
        if quiet_since and (batch.sealed_at or batch.grown_at >= quiet_since):
            return 0
        if not batch.cancelled_at:
            database.write_fields(batch, cancelled_at=now, reason=reason, retry_position=None, gave_up=False)
        wake_on_commit(batch_id)
        return _cancel_chunk(Tally(batch), now)


def cancel_next_chunk(batch_id: UUID, *, skip_locked: bool = False) -> int:
    """Cancels the next chunk of jobs of a cancelled batch; returns how many."""
    with database.atomic():
        batch = database.lock_batch(batch_id, skip_locked=skip_locked)
        if batch is None or batch.finished_at or not batch.cancelled_at:
            return 0
        return _cancel_chunk(Tally(batch), timezone.now())


def _cancel_chunk(tally: Tally, now: datetime) -> int:
    waiting = database.jobs().filter(batch=tally.batch, status__in=WAITING_HERE)
    ids = list(waiting.order_by("position").values_list("pk", flat=True)[: database.CHUNK])
    ended = _cancel_rows(ids, now)
    tally.ended(JobStatus.CANCELLED, ended)
    count_ended({tally.batch.pk: (0, 0, ended)} if ended else {}, now)
    update_batches([tally], now)
    return ended


def _cancel_rows(ids: list[UUID], now: datetime) -> int:
    """Cancels those of the jobs that wait; returns how many. Their batch is locked."""
    waiting = database.jobs().filter(pk__in=ids, status__in=WAITING_HERE)
    return waiting.update(status=JobStatus.CANCELLED, finished_at=now, due_at=None)


def cancel_job(job_id: UUID) -> bool:
    """Cancels one waiting job or callback; False if it is in RQ or has ended.

    A batch with a cancelled job cannot succeed.
    """
    now = timezone.now()
    job = database.jobs().filter(pk=job_id).only("batch_id", "callback_of_id").first()
    with database.atomic():
        batch = database.lock_batch(job.owner_id) if job else None
        if job is None or batch is None or not _cancel_rows([job_id], now):
            return False
        tally = Tally(batch)
        if job.batch_id:
            tally.ended(JobStatus.CANCELLED)
            count_ended({batch.pk: (0, 0, 1)}, now)
            wake_on_commit()
        else:
            tally.open_callbacks = -1
        update_batches([tally], now)
    return True


def pause(batch_id: UUID) -> bool:
    """Starts no further job of a batch; running ones finish. False if it is paused or has ended."""
    with database.atomic():
        won = database.batches().filter(pk=batch_id, is_paused=False, finished_at=None).update(is_paused=True)
        if won:
            wake_on_commit(batch_id)
    return bool(won)


def resume(batch_id: UUID) -> bool:
    """Starts the jobs of a paused batch again; False if it is not paused."""
    with database.atomic():
        won = database.batches().filter(pk=batch_id, is_paused=True).update(is_paused=False)
        if won:
            wake_on_commit()
    return bool(won)


def abandoned_batches(quiet_since: datetime) -> list[UUID]:
    """Open batches that have not grown since `quiet_since`: their creator must have died."""
    quiet = database.batches().filter(sealed_at=None, finished_at=None, cancelled_at=None, grown_at__lt=quiet_since)
    return list(quiet.values_list("pk", flat=True)[:LIMIT])


def cancel_abandoned(quiet_since: datetime, seconds: int) -> int:
    """Cancels the batches of `abandoned_batches`; returns how many it found."""
    ids = abandoned_batches(quiet_since)
    reason = f"Its creator added nothing for {seconds} s and never sealed it: it must have died."
    for batch_id in within_budget(ids):
        with contain_errors(batch_id):
            begin_cancel(batch_id, reason, skip_locked=True, quiet_since=quiet_since)
    return len(ids)


def mark_overdue(now: datetime) -> int:
    """Marks batches that have missed their deadline, and schedules their failure callbacks; returns how many."""
    late = database.batches().filter(finished_at=None, overdue_at=None, deadline_at__lte=now)
    ids = list(late.values_list("pk", flat=True)[:LIMIT])
    for batch_id in ids:
        with contain_errors(batch_id), database.atomic():
            batch = database.lock_batch(batch_id, skip_locked=True)
            if batch is not None and not batch.finished_at and not batch.overdue_at:
                database.batches().filter(pk=batch_id).update(overdue_at=now)
                update_batches([Tally(batch, is_overdue=True)], now)
    return len(ids)


def batches_on_hold() -> set[UUID]:
    """The paused and cancelled batches. Executors must not start their jobs."""
    on_hold = database.batches().filter(Q(is_paused=True) | Q(cancelled_at__isnull=False), finished_at=None)
    return set(on_hold.values_list("pk", flat=True))


def unfinished_cancels() -> list[UUID]:
    """Cancelled batches with jobs that wait: the cancel was interrupted, or too many failures began it."""
    cancelled = database.batches().filter(finished_at=None, cancelled_at__isnull=False)
    waiting = database.jobs().filter(status__in=WAITING_HERE).values("batch_id")
    return list(cancelled.filter(pk__in=waiting).values_list("pk", flat=True)[:LIMIT])


def continue_cancels() -> int:
    """Cancels a chunk of jobs of each unfinished cancel; returns how many jobs."""
    ended = 0
    for batch_id in within_budget(unfinished_cancels()):
        with contain_errors(batch_id):
            ended += cancel_next_chunk(batch_id, skip_locked=True)
    return ended
