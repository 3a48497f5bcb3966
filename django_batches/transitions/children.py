"""Child batches, and the jobs that wait for them.

The coordinator notifies the parent of an ended child in a separate transaction, and skips batches that are locked. A
skipped child keeps `is_awaited`, so the next poll finds it again. Therefore no notice is lost, whether the parent's
function returns before or after the child ends.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime
from uuid import UUID

from django.db import IntegrityError
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Coalesce
from django.utils import timezone

from .. import database
from ..states import IN_FLIGHT, BatchStatus, Event, JobStatus
from ..transport.outcomes import Kind, Outcome, fingerprint
from . import batch_status, job_updates, repairing, results
from .cancelling import begin_cancel
from .job_status import Change, runs_with_open_children
from .statistics import aggregate
from .steps import contain_errors, level_by_level, within_budget

logger = logging.getLogger("django_batches.jobs")

LIMIT = 500  # the most child batches that one transaction handles, or that one query returns
_Notice = tuple[UUID, UUID, UUID]
"""The ids of an ended child batch, of its parent (a job or callback), and of the parent's batch."""
_WHY = {
    BatchStatus.FAILED: "Its child batch “{}” failed.",
    BatchStatus.CANCELLED: "Its child batch “{}” was cancelled.",
    BatchStatus.SUCCEEDED: "The success callback of its child batch “{}” failed.",
}


def notify_parents(fence: Callable[[], datetime] = timezone.now) -> int:
    """Notifies jobs of their ended children, and ends jobs without other open children. Returns how many children."""
    owner_id, after = Coalesce("parent__batch_id", "parent__callback_of_id"), UUID(int=0)
    ended = _unnotified().order_by("pk").values_list("pk", "parent_id", owner_id)
    while notices := list(ended.filter(pk__gt=after)[:LIMIT]):
        try:
            count = _notify(notices, fence)
        except IntegrityError:
            # A CHECK rejected counters that differ from their rows. Unrepaired, they would block all other notices.
            if not [owner for _, _, owner in notices if repairing.repair_counters(owner, skip_locked=True)]:
                raise
            count = _notify(notices, fence)
        if count:
            return count
        # Every batch of this page is locked. Continue with the next page: those batches may be free.
        after = notices[-1][0]
    return 0


def has_unnotified_parents() -> bool:
    """Returns whether some job waits for a child batch that has ended."""
    return _unnotified().exists()


def _unnotified() -> "QuerySet[database.Batch]":
    """Returns batches that are done (they and their callbacks ended, no retry is under way) and whose parent waits."""
    settled = database.batches().filter(finished_at__isnull=False, open_callbacks=0, retry_position=None)
    return settled.filter(is_awaited=True, parent__status=JobStatus.WAITING)


def _notify(notices: list[_Notice], fence: Callable[[], datetime]) -> int:
    with database.atomic():
        now = fence()
        locked = database.lock_batches({key for child, _, owner in notices for key in (child, owner)}, skip_locked=True)
        ended = {child: job for child, job, owner in notices if owner in locked and _is_settled(locked.get(child))}
        database.batches().filter(pk__in=ended).update(is_awaited=False)
        waiting = database.jobs().filter(pk__in=set(ended.values()), status=JobStatus.WAITING)
        parents = {(job.pk, job.dispatch): job for job in waiting.defer(*database.LARGE_JOB_FIELDS)}
        awaiting = runs_with_open_children(parents)
        changes = _changes([job for key, job in parents.items() if key not in awaiting], locked)
        tallies = {change.outcome.batch_id: batch_status.Tally(locked[change.outcome.batch_id]) for change in changes}
        won = job_updates.write(changes, tallies, now, (JobStatus.WAITING,))
        aggregate(won, now)
        batch_status.update_batches(tallies.values(), now)
    for outcome in (change.outcome for change in won if change.status == JobStatus.FAILED):
        # Log no traceback: the failed job in the child batch has already logged the original one.
        logger.warning("Job %s of batch %s failed: %s", outcome.job_id, outcome.batch_id, outcome.error)
    return len(ended)


def _is_settled(child: "database.Batch | None") -> bool:
    """Checks the conditions of `_unnotified()` again, now that the child is locked."""
    return bool(
        child and child.is_awaited and child.finished_at and not child.open_callbacks and child.retry_position is None
    )


def _changes(parents: "list[database.BatchJob]", batches: "dict[UUID, database.Batch]") -> list[Change]:
    """Returns the change that ends each of these jobs, whose children have all ended."""
    failed = unsuccessful((job.pk, job.dispatch) for job in parents)
    returned = {job.returned_batch_id for job in parents if job.returned_batch_id and job.pk not in failed}
    too_large = results.too_large(returned)
    texts = results.of_batches(returned - set(too_large))
    changes = []
    for job in parents:
        # Keep the result even if the job fails here: its function has returned, and a retry only retries the child.
        status, result, error_type, error = JobStatus.SUCCEEDED, job.result_text, "", ""
        if children := failed.get(job.pk):
            all_cancelled = all(child.status == BatchStatus.CANCELLED for child in children)
            is_cancel = job.batch_id and batches[job.batch_id].cancelled_at and all_cancelled
            status = JobStatus.CANCELLED if is_cancel else JobStatus.FAILED
            error_type = "django_batches.child_failed"
            error = " ".join(_WHY[BatchStatus(child.status)].format(child) for child in children[:3])
        elif job.returned_batch_id in too_large:
            status, error_type = JobStatus.FAILED, "django_batches.result_too_large"
            error = too_large[job.returned_batch_id]
        elif job.returned_batch_id:
            result = texts.get(job.returned_batch_id)
        outcome = Outcome(
            Kind.FAILED if error_type else Kind.SUCCEEDED, job.pk, job.dispatch, job.owner_id, job.batch_id is not None,
            job.worker, job.started_at, result=result, error_type=error_type, error=error,
            fingerprint=fingerprint(error_type, job.func) if error_type else "",
        )  # fmt: skip
        changes.append(Change(outcome, status))
    return changes


def unsuccessful(parents: Iterable[tuple[UUID, int]]) -> "dict[UUID, list[database.Batch]]":
    """Maps each parent (id, dispatch) to its children that failed or were cancelled, or whose success callback did."""
    runs = dict(parents)
    fields = ("parent_id", "parent_dispatch", "status", "round", "description")
    children = database.batches().filter(parent_id__in=runs).order_by("pk").only(*fields)
    succeeded = [child.pk for child in children if child.status == BatchStatus.SUCCEEDED]
    callbacks = database.jobs().filter(event=Event.SUCCESS, status__in=[JobStatus.FAILED, JobStatus.CANCELLED])
    failed_rounds = set(callbacks.filter(callback_of__in=succeeded).values_list("callback_of_id", "round"))
    found: dict[UUID, list[database.Batch]] = defaultdict(list)
    for child in children:
        failed = child.status in (BatchStatus.FAILED, BatchStatus.CANCELLED) or (child.pk, child.round) in failed_rounds
        if failed and child.parent_id and runs[child.parent_id] == child.parent_dispatch:
            found[child.parent_id].append(child)
    return dict(found)


def cancel_orphans(parents: Iterable[UUID] | None = None) -> int:
    """Cancels child batches whose job runs again or has ended without them: otherwise, work could be done twice.

    Considers only the children of `parents`, if given. Returns how many batches it found.
    """
    awaited = database.batches().filter(is_awaited=True)
    if parents is not None:
        awaited = awaited.filter(parent_id__in=list(parents))
    run = database.jobs().filter(pk=OuterRef("parent_id"), dispatch=OuterRef("parent_dispatch"))
    counts = Exists(run.filter(status__in=[*IN_FLIGHT, JobStatus.WAITING]))
    orphans = list(awaited.filter(~counts).values_list("pk", flat=True)[:LIMIT])
    for batch_id in within_budget(orphans):
        # Cancel before is_awaited is cleared: if this process dies in between, the next turn finds the orphan again.
        with contain_errors(batch_id):
            begin_cancel(batch_id, "Its job runs again or has ended without it.", skip_locked=True)
        with database.atomic():
            batch = database.lock_batch(batch_id, skip_locked=True)
            if batch and (batch.cancelled_at or batch.finished_at):
                database.write_fields(batch, is_awaited=False)
    return len(orphans)


def cancel_children() -> int:
    """Cancels the child batches of jobs whose batch is being cancelled, level by level, and returns how many.

    Stops after `TIME_BUDGET` seconds; the next call continues.
    """
    children = database.batches().filter(is_awaited=True, finished_at=None, cancelled_at=None)
    children = children.filter(parent__batch__cancelled_at__isnull=False, parent__batch__finished_at=None)
    count = 0
    for batch_id in within_budget(level_by_level(lambda: children.values_list("pk", flat=True)[:LIMIT])):
        with contain_errors(batch_id):
            begin_cancel(batch_id, "The batch of the job that opened it was cancelled.", skip_locked=True)
        count += 1
    return count
