"""Child batches, and the jobs that wait for them.

An ended child notifies its parent in a transaction of its own. The coordinator skips batches that are locked; their
children stay `is_awaited`, and the next poll finds them. So nothing is missed, whichever comes first: the return of the
parent or the end of its child.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from django.db import IntegrityError
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from .. import database
from ..states import IN_FLIGHT, BatchStatus, Event, JobStatus
from ..transport.outcomes import Kind, Outcome, fingerprint
from . import batch_status, cancelling, job_updates, repairing, results
from .batch_status import Tally
from .job_status import Change, runs_with_open_children
from .statistics import aggregate
from .steps import contain_errors, level_by_level, within_budget

if TYPE_CHECKING:
    from ..models import Batch, BatchJob

logger = logging.getLogger("django_batches.jobs")

LIMIT = 500
"""Children that notify their parents in one transaction, or that one query finds."""

SETTLED = Q(finished_at__isnull=False, open_callbacks=0, retry_position=None)
"""Batches that have ended with their callbacks and are not being retried."""

_Notice = tuple[UUID, UUID, UUID]
"""An ended child, its parent (a job or callback), and the parent's batch."""


@dataclass(frozen=True)
class Unsuccessful:
    """A child because of which its parent cannot succeed."""

    batch_id: UUID
    was_cancelled: bool
    text: str


def notify_parents(fence: Callable[[], datetime] = timezone.now) -> int:
    """Notifies waiting jobs of their ended children, and ends jobs that await no other; returns how many children."""
    after = None
    while notices := _unnotified(after):
        if count := _notify_or_repair(notices, fence):
            return count
        # All batches of this page are locked; do not let them block the next page.
        after = notices[-1][0]
    return 0


def has_unnotified_parents() -> bool:
    """Whether a waiting job has an ended child that has not notified it."""
    return bool(_unnotified(limit=1))


def _unnotified(after: UUID | None = None, limit: int | None = None) -> list[_Notice]:
    ended = database.batches().filter(SETTLED, is_awaited=True, parent__status=JobStatus.WAITING).order_by("pk")
    if after:
        ended = ended.filter(pk__gt=after)
    found = ended.values_list("pk", "parent_id", "parent__batch_id", "parent__callback_of_id")[: limit or LIMIT]
    return [(child, parent, batch or callback_of) for child, parent, batch, callback_of in found]


def _notify_or_repair(notices: list[_Notice], fence: Callable[[], datetime]) -> int:
    try:
        return _notify(notices, fence)
    except IntegrityError:
        # A CHECK refuses counters that differ from their rows: unrepaired, they would stop all other notices.
        if not [owner for _, _, owner in notices if repairing.repair_counters(owner, skip_locked=True)]:
            raise
        return _notify(notices, fence)


def _notify(notices: list[_Notice], fence: Callable[[], datetime]) -> int:
    with database.atomic():
        now = fence()
        locked = database.lock_batches({key for child, _, owner in notices for key in (child, owner)}, skip_locked=True)
        ended = [
            (child, parent)
            for child, parent, owner in notices
            if owner in locked and child in locked and _is_settled(locked[child])
        ]
        database.batches().filter(pk__in=[child for child, _ in ended]).update(is_awaited=False)
        waiting = database.jobs().filter(pk__in={parent for _, parent in ended}, status=JobStatus.WAITING)
        parents = {(job.pk, job.dispatch): job for job in waiting.defer(*database.LARGE_JOB_FIELDS)}
        awaiting = runs_with_open_children(parents)
        changes = _changes([job for key, job in parents.items() if key not in awaiting], locked)
        tallies = {change.outcome.batch_id: Tally(locked[change.outcome.batch_id]) for change in changes}
        won = job_updates.write(changes, tallies, now, (JobStatus.WAITING,))
        aggregate(won, now)
        batch_status.update_batches(tallies.values(), now)
    for change in won:
        if change.status == JobStatus.FAILED:
            # Without a traceback: the job that failed below has logged its own.
            outcome = change.outcome
            logger.warning("Job %s of batch %s failed: %s", outcome.job_id, outcome.batch_id, outcome.error)
    return len(ended)


def _is_settled(batch: "Batch") -> bool:
    return bool(batch.is_awaited and batch.finished_at and not batch.open_callbacks and batch.retry_position is None)


def _changes(parents: "list[BatchJob]", batches: "dict[UUID, Batch]") -> list[Change]:
    """Ends jobs whose children have all ended."""
    why = unsuccessful((job.pk, job.dispatch) for job in parents)
    returned = {job.returned_batch_id for job in parents if job.returned_batch_id and not why.get(job.pk)}
    too_large = results.too_large(returned)
    texts = results.of_batches(returned - set(too_large))
    changes = []
    for job in parents:
        if reasons := why.get(job.pk):
            is_cancel = job.batch_id and batches[job.batch_id].cancelled_at and all(r.was_cancelled for r in reasons)
            status = JobStatus.CANCELLED if is_cancel else JobStatus.FAILED
            error, code = " ".join(reason.text for reason in reasons[:3]), "django_batches.child_failed"
            outcome = _outcome(job, Kind.FAILED, error=error, error_type=code)
        elif job.returned_batch_id in too_large:
            error, code = too_large[job.returned_batch_id], "django_batches.result_too_large"
            status, outcome = JobStatus.FAILED, _outcome(job, Kind.FAILED, error=error, error_type=code)
        else:
            status, outcome = JobStatus.SUCCEEDED, _outcome(job, Kind.SUCCEEDED)
            if job.returned_batch_id:
                outcome.result = texts.get(job.returned_batch_id)
        changes.append(Change(outcome, status))
    return changes


def _outcome(job: "BatchJob", kind: Kind, error: str = "", error_type: str = "") -> Outcome:
    # A failed job keeps its result: its function has returned, and a retry of the child does not run it again.
    return Outcome(
        kind, job.pk, job.dispatch, job.owner_id, job.batch_id is not None, job.worker, job.started_at,
        result=job.result_text, error=error, error_type=error_type,
        fingerprint=fingerprint(error_type, job.func) if error_type else "",
    )  # fmt: skip


def unsuccessful(parents: Iterable[tuple[UUID, int]]) -> dict[UUID, list[Unsuccessful]]:
    """Per parent (job, dispatch) its children that failed, were cancelled, or whose success callback did not succeed.

    Leaves out parents without children of that dispatch.
    """
    runs = dict(parents)
    fields = ("parent_id", "parent_dispatch", "status", "round", "description")
    children = [
        (child.parent_id, child)
        for child in database.batches().filter(parent_id__in=runs).order_by("pk").only(*fields)
        if child.parent_id and runs[child.parent_id] == child.parent_dispatch
    ]
    callbacks = database.jobs().filter(event=Event.SUCCESS, status__in=[JobStatus.FAILED, JobStatus.CANCELLED])
    succeeded = [child.pk for _, child in children if child.status == BatchStatus.SUCCEEDED]
    failed_rounds = (
        set(callbacks.filter(callback_of__in=succeeded).values_list("callback_of_id", "round")) if succeeded else set()
    )
    found: dict[UUID, list[Unsuccessful]] = defaultdict(list)
    for parent_id, child in children:
        why = found[parent_id]
        if (child.pk, child.round) in failed_rounds:
            why.append(Unsuccessful(child.pk, False, f"The success callback of its child batch “{child}” failed."))
        elif child.status in (BatchStatus.FAILED, BatchStatus.CANCELLED):
            was_cancelled = child.status == BatchStatus.CANCELLED
            end = "was cancelled" if was_cancelled else "failed"
            why.append(Unsuccessful(child.pk, was_cancelled, f"Its child batch “{child}” {end}."))
    return dict(found)


def cancel_orphans(parents: Iterable[UUID] | None = None) -> int:
    """Cancels children of runs (of these jobs, or of all) that no longer count: their work would be done twice.

    Returns how many it found.
    """
    awaited = database.batches().filter(is_awaited=True)
    if parents is not None:
        awaited = awaited.filter(parent_id__in=list(parents))
    run = database.jobs().filter(pk=OuterRef("parent_id"), dispatch=OuterRef("parent_dispatch"))
    counts = Exists(run.filter(status__in=[*IN_FLIGHT, JobStatus.WAITING]))
    orphans = list(awaited.filter(~counts).values_list("pk", flat=True)[:LIMIT])
    for batch_id in within_budget(orphans):
        # The cancel first: if this process dies in between, the next turn finds the orphan again.
        with contain_errors(batch_id):
            reason = "The run of the job that opened it does not count any more."
            cancelling.begin_cancel(batch_id, reason, skip_locked=True)
        cancelled_or_ended = Q(cancelled_at__isnull=False) | Q(finished_at__isnull=False)
        with database.atomic():
            if database.lock_batch(batch_id, skip_locked=True):
                database.batches().filter(cancelled_or_ended, pk=batch_id).update(is_awaited=False)
    return len(orphans)


def cancel_children() -> int:
    """Cancels the children of jobs whose batch is being cancelled, level by level; returns how many.

    For `TIME_BUDGET` seconds; the next call continues.
    """
    children = database.batches().filter(is_awaited=True, finished_at=None, cancelled_at=None)
    children = children.filter(parent__batch__cancelled_at__isnull=False, parent__batch__finished_at=None)
    count = 0
    for batch_id in within_budget(level_by_level(lambda: children.values_list("pk", flat=True)[:LIMIT])):
        with contain_errors(batch_id):
            reason = "The batch of the job that opened it was cancelled."
            cancelling.begin_cancel(batch_id, reason, skip_locked=True)
        count += 1
    return count
