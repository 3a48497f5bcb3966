"""Begins another round of ended batches, and makes the jobs that opened them wait for them again.

From a batch up to its root, this module waits for locks. Down to child batches, it never waits but skips locked rows.
So two retries in the same tree of batches cannot deadlock.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError
from django.utils import timezone

from .. import database
from ..exceptions import BatchCancelled, BatchError, BatchExists
from ..states import BatchStatus, JobStatus
from .batch_status import Tally, update_batches
from .children import unsuccessful
from .statistics import count_failures

WAITING_AGAIN: dict[str, Any] = {
    "status": JobStatus.WAITING,
    "finished_at": None,
    **dict.fromkeys(("error_type", "error", "fingerprint"), ""),
}


def reopen(batch: "database.Batch") -> None:
    """Saves the retry position of a locked batch and, if the batch has ended, begins another round.

    Raises `BatchExists` if another batch that has not ended uses the same key.
    """
    changes: dict[str, Any] = {"retry_position": batch.retry_position, "retry_cancelled": batch.retry_cancelled}
    if batch.finished_at:
        changes |= {
            **dict.fromkeys(("finished_at", "first_failure_id", "cancelled_at", "overdue_at")),
            "status": BatchStatus.RUNNING,
            "round": batch.round + 1,
            # Keep gave_up if cancelled jobs are left out now: it makes the next retry of all failed jobs include them.
            "gave_up": batch.gave_up and not (batch.retry_position is not None and batch.retry_cancelled),
            "reason": "",
            "sealed_at": batch.sealed_at or timezone.now(),
            "deadline_at": batch.deadline and database.dialect().now() + timedelta(seconds=batch.deadline),
        }
    try:
        with database.atomic():
            database.write_fields(batch, **changes)
    except IntegrityError:
        raise BatchExists(f"Another batch with the key {batch.key!r} has not ended yet: retry once it has.") from None


def await_again(batch: "database.Batch") -> None:
    """Makes the job that opened a locked batch wait for it again, and so on up to the root.

    Raises `BatchCancelled` or `BatchError` if one of these jobs cannot wait again; the caller must then roll back.
    """
    while batch.parent_id and not batch.is_awaited:
        job, owner = _parent(batch.pk, batch.parent_id)
        if owner.deleting_at:
            raise BatchError(f"Batch {owner.pk}, above batch {batch.pk}, is being deleted.")
        if job.status == JobStatus.SUCCEEDED:
            return  # only a callback of the batch is retried, and the parent's success does not depend on it
        if owner.cancelled_at and job.batch_id:
            reason = f"Batch {owner.pk}, above batch {batch.pk}, was cancelled: retry batch {owner.pk}."
            raise BatchCancelled(reason, batch_id=owner.pk)
        if job.dispatch != batch.parent_dispatch or not job.waited_at:
            raise BatchError(f"No job waits for batch {batch.pk} any more: retry job {job.pk}, which opened it.")
        database.write_fields(batch, is_awaited=True)
        if job.status == JobStatus.WAITING:
            return
        if job.batch_id:
            reopen(owner)
        reset_jobs(owner, [job], WAITING_AGAIN)
        batch = owner


def _parent(batch_id: UUID, job_id: UUID) -> "tuple[database.BatchJob, database.Batch]":
    jobs = database.jobs().filter(pk=job_id).defer(*database.LARGE_JOB_FIELDS)
    job = jobs.first()
    owner = database.lock_batch(job.owner_id) if job else None
    job = jobs.first()  # read again, now that its batch is locked
    if job is None or owner is None:
        raise BatchError(f"The job that opened batch {batch_id} has been deleted: no job waits for it any more.")
    return job, owner


def reset_jobs(batch: "database.Batch", jobs: "list[database.BatchJob]", fields: dict[str, Any]) -> None:
    """Writes `fields` to ended jobs or callbacks of a locked batch, and moves the counters back accordingly."""
    if not jobs:
        return
    of_batch = [job for job in jobs if not job.callback_of_id]
    tally = Tally(batch, open_callbacks=len(jobs) - len(of_batch))
    for job in of_batch:
        tally.reopened(job.status)
    groups = Counter((job.fingerprint, job.error_type) for job in of_batch if job.status == JobStatus.FAILED)
    again = database.jobs().filter(pk__in=[job.pk for job in jobs])
    again.update(**fields)
    again.filter(batch=batch).update(round=batch.round)
    count_failures([(batch.pk, *group, "", -count) for group, count in groups.items()])
    update_batches([tally], timezone.now())


class RetriedChildren:
    """The child batches of ended jobs. Locks them, but skips those that another transaction has locked."""

    def __init__(self, jobs: "Iterable[database.BatchJob]") -> None:
        runs = {job.pk: job.dispatch for job in jobs if job.waited_at}
        self.by_job: dict[UUID, list[UUID]] = defaultdict(list)
        found = database.batches().filter(parent_id__in=runs).values_list("pk", "parent_id", "parent_dispatch")
        for pk, parent_id, dispatch in found:
            if runs[parent_id] == dispatch:
                self.by_job[parent_id].append(pk)
        ids = [pk for children in self.by_job.values() for pk in children]
        # Never wait for these locks: the batch above is locked already, and await_again() locks in the opposite order.
        self._children = database.lock_batches(ids, skip_locked=True) if ids else {}
        named = {child.key for child in self._children.values() if child.key}
        alive = database.batches().filter(key__in=named, finished_at=None)
        self._keys = set(alive.values_list("key", flat=True))
        """The keys in use: those of batches that have not ended, and those that `reserve()` has added."""

    def reserve(self, job: "database.BatchJob") -> bool:
        """Returns whether the children of a job can be retried now; if so, reserves their keys.

        False if one of them is locked, has not ended or is being deleted, or if its key is in use.
        """
        children = [self._children.get(pk) for pk in self.by_job[job.pk]]
        free = [child for child in children if child and child.finished_at and not child.deleting_at]
        keys = {child.key for child in free if child.status != BatchStatus.SUCCEEDED} - {""}
        if len(free) < len(children) or keys & self._keys:
            return False
        self._keys |= keys
        return True

    def retry(self, jobs: "list[database.BatchJob]", include_cancelled: bool) -> None:
        """Begins a retry of the unsuccessful children of these jobs. The coordinator continues it."""
        failed = unsuccessful((job.pk, job.dispatch) for job in jobs)
        for job in jobs:
            ids = [child.pk for child in failed.get(job.pk, [])]
            for child in (self._children[pk] for pk in ids):
                # Include cancelled rows if the child did not fail: it may have no failed rows to retry.
                child.retry_cancelled = include_cancelled or child.gave_up or child.status != BatchStatus.FAILED
                child.retry_position = 0
                if child.status == BatchStatus.SUCCEEDED:
                    database.write_fields(child, retry_position=0, retry_cancelled=child.retry_cancelled)
                    continue
                with suppress(BatchExists):  # a sibling has the key: a later retry reopens this child
                    reopen(child)
            # If all succeeded, the job failed because its result was too large: await a child to check the size again.
            database.batches().filter(pk__in=ids or self.by_job[job.pk][:1]).update(is_awaited=True)
