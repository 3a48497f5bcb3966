"""Cancels, pauses and resumes batches; cancels single jobs.

The database cannot tell whether a dispatched job is already running. So only its outcome ends such a job, and
executors do not start it if `batches_on_hold()` contains its batch.
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

LIMIT = 100  # the most batches that one query of the coordinator returns


def cancel(batch_id: UUID, reason: str = "") -> int:
    """Cancels a batch: its waiting jobs end now, and its running jobs finish and count as usual.

    Returns how many jobs this call cancelled; 0 if the batch has ended. Commits after each chunk, unless the caller has
    opened a transaction. If this process dies between two chunks, the coordinator cancels the rest.
    """
    ended = total = begin_cancel(batch_id, reason)
    while ended == database.CHUNK:
        ended = cancel_next_chunk(batch_id)
        total += ended
    return total


def begin_cancel(batch_id: UUID, reason: str, *, skip_locked: bool = False, quiet_since: datetime | None = None) -> int:
    """Marks a batch as cancelled, cancels the first chunk of its jobs, and returns how many jobs it cancelled.

    With `quiet_since`, does nothing if the batch is sealed, or if jobs were added to it at or after that time.
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
    """Cancels the next chunk of jobs of a batch marked as cancelled, and returns how many jobs it cancelled."""
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
    """Cancels those of the jobs that still wait, and returns how many. The caller has locked their batch."""
    waiting = database.jobs().filter(pk__in=ids, status__in=WAITING_HERE)
    return waiting.update(status=JobStatus.CANCELLED, finished_at=now, due_at=None)


def cancel_job(job_id: UUID) -> bool:
    """Cancels one waiting job or callback. Returns False if it has been dispatched or has ended.

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
    """Pauses a batch: none of its jobs start, and running jobs finish. False if it is already paused or has ended."""
    with database.atomic():
        won = database.batches().filter(pk=batch_id, is_paused=False, finished_at=None).update(is_paused=True)
        if won:
            wake_on_commit(batch_id)
    return bool(won)


def resume(batch_id: UUID) -> bool:
    """Resumes a paused batch, so that its jobs start again. Returns False if it is not paused."""
    with database.atomic():
        won = database.batches().filter(pk=batch_id, is_paused=True).update(is_paused=False)
        if won:
            wake_on_commit()
    return bool(won)


def abandoned_batches(quiet_since: datetime) -> list[UUID]:
    """Returns open batches to which no job was added since `quiet_since`: their creator has probably died."""
    quiet = database.batches().filter(sealed_at=None, finished_at=None, cancelled_at=None, grown_at__lt=quiet_since)
    return list(quiet.values_list("pk", flat=True)[:LIMIT])


def cancel_abandoned(quiet_since: datetime, seconds: int) -> int:
    """Cancels the batches that `abandoned_batches()` returns, and returns how many there were."""
    ids = abandoned_batches(quiet_since)
    reason = f"Its creator has probably died: it added no job for {seconds} seconds and did not seal the batch."
    for batch_id in within_budget(ids):
        with contain_errors(batch_id):
            begin_cancel(batch_id, reason, skip_locked=True, quiet_since=quiet_since)
    return len(ids)


def mark_overdue(now: datetime) -> int:
    """Marks batches past their deadline as overdue and schedules their failure callbacks. Returns how many it found."""
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
    """Returns cancelled batches that have waiting jobs: the cancel was interrupted, or too many failures caused it."""
    cancelled = database.batches().filter(finished_at=None, cancelled_at__isnull=False)
    waiting = database.jobs().filter(status__in=WAITING_HERE).values("batch_id")
    return list(cancelled.filter(pk__in=waiting).values_list("pk", flat=True)[:LIMIT])


def continue_cancels() -> int:
    """Cancels a chunk of jobs in each batch of `unfinished_cancels()`, and returns how many jobs it cancelled."""
    ended = 0
    for batch_id in within_budget(unfinished_cancels()):
        with contain_errors(batch_id):
            ended += cancel_next_chunk(batch_id, skip_locked=True)
    return ended
