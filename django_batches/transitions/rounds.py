"""Another round: batches that had ended are opened again, and whoever had waited for them waits again.

Going up, locks are waited for, from the deepest batch to the root; going down they never are, so that two retries in
one tree cannot wait for each other.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import IntegrityError
from django.utils import timezone

from .. import database
from ..exceptions import BatchCancelled, BatchError, BatchExists
from ..states import BatchStatus, JobStatus
from . import finishing
from .children import unsuccessful
from .finishing import Tally
from .statistics import count_failures

if TYPE_CHECKING:
    from ..models import Batch, BatchJob

WAITING_AGAIN: dict[str, Any] = {
    "status": JobStatus.WAITING,
    "finished_at": None,
    "error_type": "",
    "error": "",
    "fingerprint": "",
}


def reopen(batch: "Batch") -> None:
    """Writes the position of a retry and, where the batch had ended, opens another round; the batch is locked."""
    changes: dict[str, Any] = {"retry_position": batch.retry_position, "retry_cancelled": batch.retry_cancelled}
    is_of_all = batch.retry_position is not None
    if batch.finished_at:
        now = timezone.now()
        changes |= {
            "status": BatchStatus.RUNNING,
            "finished_at": None,
            "round": batch.round + 1,
            "first_failure_id": None,
            "cancelled_at": None,
            # Kept where what it cancelled stays cancelled: the next retry of all revives that.
            "gave_up": batch.gave_up and not (is_of_all and batch.retry_cancelled),
            "reason": "",
            "sealed_at": batch.sealed_at or now,
            "overdue_at": None,
            "deadline_at": batch.deadline and now + timedelta(seconds=batch.deadline),
        }
    for name, value in changes.items():
        setattr(batch, name, value)
    if batch.deadline and "deadline_at" in changes:
        changes["deadline_at"] = database.deadline(batch.deadline)
    try:
        with database.atomic():
            database.batches().filter(pk=batch.pk).update(**changes)
    except IntegrityError:
        raise BatchExists(f"Another batch with the key {batch.key!r} has not ended yet: retry once it has.") from None


def climb(batch: "Batch") -> None:
    """Whoever had been told that `batch`, which is locked, had come to nothing waits for it again, up to the root.

    Raises `BatchCancelled` or `BatchError` where nobody can; the caller's transaction must then come to nothing.
    """
    while batch.parent_id and not batch.is_awaited:
        job, owner = _parent(batch.pk, batch.parent_id)
        if owner.deleting_at:
            raise BatchError(f"Batch {owner.pk}, above batch {batch.pk}, is being deleted.")
        if job.status == JobStatus.SUCCEEDED:
            return  # it was only a callback that the parent does not depend on
        if owner.cancelled_at and job.batch_id:
            raise BatchCancelled(
                f"Batch {owner.pk}, above batch {batch.pk}, was cancelled: retry that one.", batch_id=owner.pk
            )
        if job.dispatch != batch.parent_dispatch or not job.waited_at:
            raise BatchError(f"Nobody waits for batch {batch.pk} any more: retry job {job.pk}, which opened it.")
        batch.is_awaited = True
        database.batches().filter(pk=batch.pk).update(is_awaited=True)
        if job.status == JobStatus.WAITING:
            return
        if job.batch_id:
            reopen(owner)
        put_back(owner, [job], WAITING_AGAIN)
        batch = owner


def put_back(batch: "Batch", jobs: "list[BatchJob]", fields: dict[str, Any]) -> None:
    """Writes `fields`, which say how they go on, to ended jobs or callbacks of a locked batch, and counts them."""
    if not jobs:
        return
    tally, groups = Tally(batch), Counter[tuple[str, str]]()
    for job in jobs:
        if job.callback_of_id:
            tally.open_callbacks += 1
            continue
        tally.reopened(job.status)
        if job.status == JobStatus.FAILED:
            groups[job.fingerprint, job.error_type] += 1
    again = database.jobs().filter(pk__in=[job.pk for job in jobs])
    again.update(**fields)
    again.filter(batch=batch).update(round=batch.round)
    count_failures([[batch.pk, *group, "", -count] for group, count in groups.items()])
    finishing.write([tally], timezone.now())


@dataclass
class Below:
    """The children of jobs that have ended by them, locked where nobody else holds them."""

    children: "dict[UUID, Batch]"
    of: dict[UUID, list[UUID]]
    """Per job its children of the run that returned."""
    keys: set[str]
    """Keys of theirs that batches alive have, or that children have for which `take` was called."""

    @classmethod
    def lock(cls, jobs: "Iterable[BatchJob]") -> "Below":
        """Never waits: the batch above is locked already, and a retry that climbs takes the locks the other way."""
        runs = {job.pk: job.dispatch for job in jobs if job.waited_at}
        of: dict[UUID, list[UUID]] = defaultdict(list)
        if not runs:
            return cls({}, of, set())
        found = database.batches().filter(parent_id__in=runs).values_list("pk", "parent_id", "parent_dispatch")
        for pk, parent_id, dispatch in found:
            if runs[parent_id] == dispatch:
                of[parent_id].append(pk)
        children = database.lock_batches([pk for keys in of.values() for pk in keys], skip_locked=True)
        named = {child.key for child in children.values() if child.key}
        alive = database.batches().filter(key__in=named, finished_at=None) if named else database.batches().none()
        return cls(children, of, set(alive.values_list("key", flat=True)))

    def take(self, job: "BatchJob") -> bool:
        """Whether the children of the job can be retried now; from then on their keys are taken.

        Not where somebody else holds one of them or deletes it, or where another batch has its key.
        """
        ids = self.of.get(job.pk, [])
        children = [self.children.get(key) for key in ids]
        if any(child is None or not child.finished_at or child.deleting_at for child in children):
            return False
        keys = {self.children[key].key for key in ids if self.children[key].status != BatchStatus.SUCCEEDED} - {""}
        if keys & self.keys:
            return False
        self.keys |= keys
        return True

    def retry(self, jobs: "list[BatchJob]", include_cancelled: bool) -> None:
        """Begins a retry in the children that came to nothing; the coordinator goes on, one batch at a time."""
        failed = unsuccessful((job.pk, job.dispatch) for job in jobs)
        for job in jobs:
            for why in failed.get(job.pk) or []:
                self._retry(self.children[why.batch_id], include_cancelled)
            # Where all succeeded, the result was too large: it is looked at once more.
            awaited = [why.batch_id for why in failed.get(job.pk) or []] or self.of[job.pk][:1]
            database.batches().filter(pk__in=awaited).update(is_awaited=True)

    def _retry(self, child: "Batch", include_cancelled: bool) -> None:
        child.retry_position = 0
        # Of a child that was cancelled, or whose callback alone was, nothing else is to be retried.
        child.retry_cancelled = include_cancelled or child.gave_up or child.status != BatchStatus.FAILED
        if child.status == BatchStatus.SUCCEEDED:
            database.batches().filter(pk=child.pk).update(retry_position=0, retry_cancelled=child.retry_cancelled)
            return
        with suppress(BatchExists):  # two children of one job with the same key: one after the other
            reopen(child)


def _parent(batch_id: UUID, job_id: UUID) -> "tuple[BatchJob, Batch]":
    jobs = database.jobs().filter(pk=job_id).defer("arguments", "traceback")
    job = jobs.first()
    owner = database.lock_batches([job.owner_id]).get(job.owner_id) if job else None
    job = jobs.first()  # as it stands under the lock of its batch
    if job is None or owner is None:
        raise BatchError(f"The job that opened batch {batch_id} has been deleted: nobody waits for it any more.")
    return job, owner
