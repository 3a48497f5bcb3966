"""Child batches and the jobs that wait for them: what goes up when a child has ended, what goes down on a cancel.

A child that has ended tells its parent in a transaction of its own, because the coordinator takes only batches that
nobody holds locked: what it passes over stays `is_awaited`, and the next poll finds it. So neither the return of the
parent nor the end of its child, in whatever order or at once, can be missed.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import IntegrityError
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from .. import database
from ..states import IN_FLIGHT, BatchStatus, Event, JobStatus
from ..transport.outcomes import Kind, Outcome, fingerprint
from . import cancelling, finishing, job_updates, repairing, results
from .finishing import Tally
from .next_status import Change
from .statistics import aggregate

if TYPE_CHECKING:
    from ..models import Batch, BatchJob

logger = logging.getLogger("django_batches.jobs")

LIMIT = 500
"""Children that tell their parents in one transaction."""

SETTLED = Q(finished_at__isnull=False, open_callbacks=0, retry_position=None)
"""Batches that have ended with their callbacks, and of which nothing is being retried."""


@dataclass(frozen=True)
class Unsuccessful:
    """A child because of which its parent cannot succeed."""

    batch_id: UUID
    was_cancelled: bool
    text: str


def notify_parents(fence: Callable[[], datetime] = timezone.now) -> int:
    """Tells waiting jobs which of their children have ended, and ends those jobs that have no other; how many told."""
    after = None
    while told := _to_tell(after):
        if count := _tell_or_repair(told, fence):
            return count
        # Somebody holds the batches of a whole page: those behind it must not wait for him.
        after = told[-1][0]
    return 0


def _tell_or_repair(told: list[tuple[UUID, UUID, UUID]], fence: Callable[[], datetime]) -> int:
    try:
        return _tell(told, fence)
    except IntegrityError:
        # A CHECK refuses counters that differ from their rows: nobody's parent would be told any more.
        if not [owner for _, _, owner in told if repairing.repair_counters(owner, skip_locked=True)]:
            raise
        return _tell(told, fence)


def _tell(told: list[tuple[UUID, UUID, UUID]], fence: Callable[[], datetime]) -> int:
    with database.atomic():
        now = fence()
        locked = database.lock_batches({key for child, _, owner in told for key in (child, owner)}, skip_locked=True)
        ended = [
            (child, parent)
            for child, parent, owner in told
            if owner in locked and child in locked and _is_settled(locked[child])
        ]
        database.batches().filter(pk__in=[child for child, _ in ended]).update(is_awaited=False)
        waiting = database.jobs().filter(pk__in={parent for _, parent in ended}, status=JobStatus.WAITING)
        parents = {(job.pk, job.dispatch): job for job in waiting.defer("arguments", "traceback")}
        awaiting = database.awaiting(parents)
        changes = _end([job for key, job in parents.items() if key not in awaiting], locked)
        tallies = {change.outcome.batch_id: Tally(locked[change.outcome.batch_id]) for change in changes}
        won = job_updates.write(changes, tallies, now, (JobStatus.WAITING,))
        aggregate(won, now)
        finishing.write(tallies.values(), now)
    for change in won:
        if change.status == JobStatus.FAILED:
            # No error of its own: the job that failed below has told its.
            outcome = change.outcome
            logger.warning("Job %s of batch %s failed: %s", outcome.job_id, outcome.batch_id, outcome.error)
    return len(ended)


def has_unnotified_parents() -> bool:
    """Whether a waiting job is still to be told that a child has ended."""
    return bool(_to_tell(limit=1))


def unsuccessful(parents: Iterable[tuple[UUID, int]]) -> dict[UUID, list[Unsuccessful]]:
    """Per parent (job, dispatch) the children that failed, were cancelled, or whose success callback came to nothing.

    A parent without children of that dispatch is left out.
    """
    runs = dict(parents)
    fields = ("parent_id", "parent_dispatch", "status", "round", "description")
    children = [
        (child.parent_id, child)
        for child in database.batches().filter(parent_id__in=runs).order_by("pk").only(*fields)
        if child.parent_id and runs[child.parent_id] == child.parent_dispatch
    ]
    callbacks = database.jobs().filter(event=Event.SUCCESS, status__in=[JobStatus.FAILED, JobStatus.CANCELLED])
    good = [child.pk for _, child in children if child.status == BatchStatus.SUCCEEDED]
    bad_ends = set(callbacks.filter(callback_of__in=good).values_list("callback_of_id", "round")) if good else set()
    found: dict[UUID, list[Unsuccessful]] = defaultdict(list)
    for parent_id, child in children:
        why = found[parent_id]
        if (child.pk, child.round) in bad_ends:
            why.append(Unsuccessful(child.pk, False, f"The success callback of its child batch “{child}” failed."))
        elif child.status in (BatchStatus.FAILED, BatchStatus.CANCELLED):
            cancelled = child.status == BatchStatus.CANCELLED
            end = "was cancelled" if cancelled else "failed"
            why.append(Unsuccessful(child.pk, cancelled, f"Its child batch “{child}” {end}."))
    return dict(found)


def cancel_orphans(parents: Iterable[UUID] | None = None) -> int:
    """Cancels children of runs that came to nothing (of these jobs, or of all): their work would be done twice.

    Returns how many it found.
    """
    awaited = database.batches().filter(is_awaited=True)
    if parents is not None:
        awaited = awaited.filter(parent_id__in=list(parents))
    run = database.jobs().filter(
        pk=OuterRef("parent_id"),
        dispatch=OuterRef("parent_dispatch"),
        status__in=[*IN_FLIGHT, JobStatus.WAITING],
    )
    orphans = list(awaited.filter(~Exists(run)).values_list("pk", flat=True)[:LIMIT])
    until = time.monotonic() + database.TIME_BUDGET
    for batch_id in orphans:
        # First the cancel: where this process dies between the two, the orphan is found again.
        with repairing.contain_errors(batch_id):
            cancelling.begin_cancelling(
                batch_id, "The run of the job that opened it came to nothing.", skip_locked=True
            )
        cancelled_or_ended = Q(cancelled_at__isnull=False) | Q(finished_at__isnull=False)
        with database.atomic():
            if batch_id in database.lock_batches([batch_id], skip_locked=True):
                database.batches().filter(cancelled_or_ended, pk=batch_id).update(is_awaited=False)
        if time.monotonic() > until:
            break  # the others are found again
    return len(orphans)


def cancel_children() -> int:
    """Cancels the children of jobs whose batch is being cancelled, level by level; returns how many.

    For `rows.LONG` at most: nobody keeps the books meanwhile. The next call goes on.
    """
    below = database.batches().filter(
        is_awaited=True,
        finished_at=None,
        cancelled_at=None,
        parent__batch__cancelled_at__isnull=False,
        parent__batch__finished_at=None,
    )
    seen: set[UUID] = set()
    until = time.monotonic() + database.TIME_BUDGET
    while new := set(below.values_list("pk", flat=True)[:LIMIT]) - seen:
        for batch_id in new:
            with repairing.contain_errors(batch_id):
                reason = "The batch of the job that opened it was cancelled."
                cancelling.begin_cancelling(batch_id, reason, skip_locked=True)
            seen.add(batch_id)
            if time.monotonic() > until:
                return len(seen)
    return len(seen)


def _to_tell(after: UUID | None = None, limit: int | None = None) -> list[tuple[UUID, UUID, UUID]]:
    """A page of (child, parent, batch of the parent) of children that have ended under a job that waits."""
    ended = database.batches().filter(SETTLED, is_awaited=True, parent__status=JobStatus.WAITING).order_by("pk")
    if after:
        ended = ended.filter(pk__gt=after)
    found = ended.values_list("pk", "parent_id", "parent__batch_id", "parent__callback_of_id")[: limit or LIMIT]
    return [(child, parent, batch or callback_of) for child, parent, batch, callback_of in found]


def _is_settled(batch: "Batch") -> bool:
    return bool(batch.is_awaited and batch.finished_at and not batch.open_callbacks and batch.retry_position is None)


def _end(parents: "list[BatchJob]", batches: "dict[UUID, Batch]") -> list[Change]:
    """What becomes of jobs all of whose children have ended."""
    why = unsuccessful((job.pk, job.dispatch) for job in parents)
    returned = {job.returned_batch_id for job in parents if job.returned_batch_id and not why.get(job.pk)}
    too_large = results.too_large(returned)
    texts = results.of_batches(returned - set(too_large))
    changes = []
    for job in parents:
        batch = batches[job.owner_id]
        is_job = job.batch_id is not None
        if reasons := why.get(job.pk):
            is_cancel = batch.cancelled_at and is_job and all(reason.was_cancelled for reason in reasons)
            status = JobStatus.CANCELLED if is_cancel else JobStatus.FAILED
            outcome = _unsuccessful(job, " ".join(reason.text for reason in reasons[:3]), "child_failed")
        elif job.returned_batch_id in too_large:
            status, outcome = JobStatus.FAILED, _unsuccessful(job, too_large[job.returned_batch_id], "result_too_large")
        else:
            text = texts.get(job.returned_batch_id) if job.returned_batch_id else job.result_text
            status, outcome = JobStatus.SUCCEEDED, _outcome(job, Kind.SUCCEEDED, result=text)
        changes.append(Change(outcome, status))
    return changes


def _unsuccessful(job: "BatchJob", error: str, code: str) -> Outcome:
    kind = f"django_batches.{code}"
    # With its own result: the function has returned, and is not run again where the child is retried.
    return _outcome(
        job, Kind.FAILED, error_type=kind, error=error, fingerprint=fingerprint(kind, job.func), result=job.result_text
    )


def _outcome(job: "BatchJob", kind: Kind, **fields: Any) -> Outcome:
    is_job_of_batch = job.batch_id is not None
    return Outcome(
        kind, job.pk, job.dispatch, job.owner_id, is_job_of_batch,
        worker=job.worker, started_at=job.started_at, **fields,
    )  # fmt: skip
