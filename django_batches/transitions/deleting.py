"""The removal of ended batches with all that is below them: in chunks, marked first, taken up again after a crash."""

import time
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from django.db.models import F, Q
from django.db.models.deletion import Collector
from django.utils import timezone

from .. import database
from ..database import foreign_keys
from ..exceptions import BatchError
from ..states import IN_FLIGHT, JobStatus
from . import repairing

if TYPE_CHECKING:
    from ..models import Batch

_WAITED_FOR = Q(
    is_awaited=True, parent_dispatch=F("parent__dispatch"), parent__status__in=[*IN_FLIGHT, JobStatus.WAITING]
)
BUDGET = 0.02
"""Seconds of the coordinator's turn after which it begins with no further chunk: outcomes wait meanwhile."""
TOGETHER = 20
"""Batches of a tree that one turn deletes."""


def delete(batch_id: UUID, ended_before: datetime | None = None) -> int:
    """Deletes an ended batch whose callbacks have ended, in chunks; returns how many job rows went with it.

    Its child batches, and theirs, go with it. It is marked first, so that a retry that comes meanwhile is refused.
    Where this process dies half-way, a second call goes on, and so does the coordinator (`unfinished`). Raises
    `BatchError` where one of them has not ended (or the batch itself not before `ended_before`), and `ProtectedError`
    as any model does.
    """
    return sum(_delete_one(key) for key in reversed(begin(batch_id, ended_before)))


def tree(root: UUID) -> list[UUID]:
    """A batch and the batches below it, level by level; raises `BatchError` where one of these has not ended."""
    found, level = [root], [root]
    while level:
        below = database.batches().filter(parent__batch__in=level) | database.batches().filter(
            parent__callback_of__in=level
        )
        level = list(below.values_list("pk", flat=True))
        found += level
    not_ended = database.batches().filter(Q(finished_at=None) | Q(open_callbacks__gt=0), pk__in=found[1:])
    if child := not_ended.values_list("pk", flat=True).first():
        raise BatchError(f"Batch {child}, below batch {root}, has not ended: cancel it and wait. Nothing was deleted.")
    return found


def _delete_one(batch_id: UUID, *, skip_locked: bool = False) -> int:
    if not _mark(batch_id, skip_locked=skip_locked):
        return 0
    total = _delete_jobs(batch_id)
    with database.atomic_with_lock_timeout() if skip_locked else database.atomic():
        total += _delete_rest([batch_id])
    return total


def delete_at_once(ids: list[UUID]) -> int:
    """Deletes small ended batches, which the caller has locked and judged, in its transaction; how many job rows."""
    return database.jobs().filter(batch__in=ids)._raw_delete(database.alias()) + _delete_rest(ids)


def begin(batch_id: UUID, ended_before: datetime | None = None, *, skip_locked: bool = False) -> list[UUID]:
    """The first step of `delete`, which raises what that raises; the coordinator goes on.

    Returns what will go, from the top down; nothing where it is gone or, with `skip_locked`, held.
    """
    whole = tree(batch_id)
    # Before anything is done: a deletion that cannot go on would leave half a batch behind.
    _collected(whole)
    if holder := foreign_keys.holders_of_jobs(whole):
        raise BatchError(f"{holder} points to jobs of batch {batch_id}: delete those rows first. Nothing was deleted.")
    # The top first: what is below it ends with it, so that nothing of the tree moves any more.
    return whole if _mark(batch_id, ended_before, skip_locked=skip_locked) else []


def _collected(ids: list[UUID]) -> Collector:
    """The batches and what the project's own foreign keys take with them; not the jobs, which may be millions.

    Raises `ProtectedError` or `RestrictedError`, as `delete()` of any model does.
    """
    batches = database.batches().filter(pk__in=ids)
    collector = Collector(using=database.alias(), origin=batches)
    collector.collect(batches)
    return collector


def _delete_rest(ids: list[UUID]) -> int:
    """Everything of the batches but their jobs; returns how many callbacks."""
    total = database.jobs().filter(callback_of__in=ids)._raw_delete(database.alias())
    for name in ("TimeBucket", "FailureGroup"):
        database.related(name).filter(batch__in=ids)._raw_delete(database.alias())
    _collected(ids).delete()
    return total


def unfinished() -> list[UUID]:
    """Batches whose deletion was cut off half-way, or is under way elsewhere."""
    found = database.batches().filter(deleting_at__isnull=False).order_by("pk")
    return list(found.values_list("pk", flat=True)[:100])


def continue_deletions() -> bool:
    """A chunk of each deletion that was begun here or cut off elsewhere, for `BUDGET`; whether anything was deleted."""
    has_gone_on, until = False, time.monotonic() + BUDGET
    for batch_id in unfinished():
        # A run that was given up may have opened a child since, or a row of the project have come to point here.
        with repairing.contain_errors(batch_id):
            delete_next_chunk(batch_id)
            has_gone_on = True
            if time.monotonic() >= until:
                break  # not after one that was put off: it would be the first again, and those behind it never come
    return has_gone_on


def delete_next_chunk(batch_id: UUID) -> None:
    """A chunk of a deletion that was begun; whatever somebody holds locked is left to the next one."""
    for key in reversed(tree(batch_id)[-TOGETHER:]):
        ids = list(database.jobs().filter(batch=key).values_list("pk", flat=True)[: database.CHUNK])
        if len(ids) == database.CHUNK:
            if _mark(key, skip_locked=True):
                database.jobs().filter(pk__in=ids)._raw_delete(database.alias())
            return
        _delete_one(key, skip_locked=True)


def _mark(batch_id: UUID, ended_before: datetime | None = None, *, skip_locked: bool = False) -> bool:
    """Marks an ended batch as being deleted; False if it is gone or, with `skip_locked`, locked.

    Nothing moves it from then on: a retry refuses it, and all else only moves batches that have not ended.
    """
    with database.atomic():
        batch = database.lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)
        if batch is None:
            return False
        if batch.deleting_at:
            return True
        if reason := _why_not(batch, ended_before):
            raise BatchError(f"{reason} Nothing was deleted.")
        database.batches().filter(pk=batch_id).update(deleting_at=timezone.now(), first_failure=None)
    return True


def _why_not(batch: "Batch", ended_before: datetime | None) -> str:
    if database.batches().filter(_WAITED_FOR, pk=batch.pk).exists():
        return f"The job that opened batch {batch.pk} takes its outcome: wait until that job has ended."
    if not batch.finished_at:
        return f"Batch {batch.pk} has not ended: cancel it and wait."
    if batch.open_callbacks:
        return f"Batch {batch.pk} has callbacks that have not ended: wait for them."
    if ended_before and batch.finished_at >= ended_before:
        return f"Batch {batch.pk} was retried and has ended again."
    return ""


def _delete_jobs(batch_id: UUID) -> int:
    """Deletes the jobs of a batch by ranges of their positions, each in a transaction of its own; returns how many."""
    jobs = database.jobs().filter(batch=batch_id)
    last = jobs.order_by("-position").values_list("position", flat=True).first()
    # A range that goes on, not "the next ones": that would walk past everything deleted before, for each chunk again.
    starts = range(0, 0 if last is None else last + 1, database.CHUNK)
    return sum(
        jobs.filter(position__range=(start, start + database.CHUNK - 1))._raw_delete(database.alias())
        for start in starts
    )
