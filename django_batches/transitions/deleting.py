"""Deletes ended batches with their trees: marked first, then in chunks. The coordinator continues after a crash."""

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from django.db.models import F, Q
from django.db.models.deletion import Collector
from django.utils import timezone

from .. import database
from ..database import foreign_keys
from ..exceptions import BatchError
from ..states import IN_FLIGHT, JobStatus
from .steps import contain_errors, within_budget

_AWAITED = Q(is_awaited=True, parent_dispatch=F("parent__dispatch"), parent__status__in=[*IN_FLIGHT, JobStatus.WAITING])
BUDGET = 0.02  # seconds of a coordinator's turn after which it begins no further chunk: outcomes wait meanwhile
TOGETHER, LIMIT = 20, 100  # batches of a tree that one chunk deletes, and deletions that one query finds


def delete(batch_id: UUID, ended_before: datetime | None = None) -> int:
    """Deletes an ended batch and the batches below it, in chunks; returns how many job rows.

    Marks the batch first, so that a retry is refused. If this process dies, the coordinator continues, or a second
    call. Raises `BatchError` if one of the batches or its callbacks have not ended (or the batch itself not before
    `ended_before`), and `ProtectedError` or `RestrictedError` as any model does.
    """
    return sum(_delete_one(key) for key in reversed(begin_deletion(batch_id, ended_before)))


def tree(root: UUID) -> list[UUID]:
    """A batch and the batches below it, level by level; raises `BatchError` if one of these has not ended."""
    found, level = [root], [root]
    while level:
        below = database.batches().filter(Q(parent__batch__in=level) | Q(parent__callback_of__in=level))
        level = list(below.values_list("pk", flat=True))
        found += level
    not_ended = database.batches().filter(Q(finished_at=None) | Q(open_callbacks__gt=0), pk__in=found[1:])
    if child := not_ended.values_list("pk", flat=True).first():
        raise BatchError(f"Batch {child}, below batch {root}, has not ended: cancel it and wait. Nothing was deleted.")
    return found


def begin_deletion(batch_id: UUID, ended_before: datetime | None = None, *, skip_locked: bool = False) -> list[UUID]:
    """Marks a batch as being deleted; raises what `delete` raises. The coordinator continues.

    Returns the batches of the tree, the top first; nothing if the batch is gone or, with `skip_locked`, locked.
    """
    whole = tree(batch_id)
    # First: a deletion that fails later would leave half a batch behind.
    _collect(whole)
    if holder := foreign_keys.reference(whole, to_jobs_only=True):
        raise BatchError(f"{holder} points to jobs of batch {batch_id}: delete those rows first. Nothing was deleted.")
    # The top alone: the batches below it have ended, and a retry of one of them would have to reopen the top.
    return whole if _mark(batch_id, ended_before, skip_locked=skip_locked) else []


def _mark(batch_id: UUID, ended_before: datetime | None = None, *, skip_locked: bool = False) -> bool:
    """Marks an ended batch as being deleted; False if it is gone or, with `skip_locked`, locked."""
    with database.atomic():
        batch = database.lock_batch(batch_id, skip_locked=skip_locked)
        if batch is None or batch.deleting_at:
            return batch is not None
        reason = ""
        if database.batches().filter(_AWAITED, pk=batch_id).exists():
            reason = f"The job that opened batch {batch_id} takes its outcome: wait until that job has ended."
        elif not batch.finished_at:
            reason = f"Batch {batch_id} has not ended: cancel it and wait."
        elif batch.open_callbacks:
            reason = f"Batch {batch_id} has callbacks that have not ended: wait for them."
        elif ended_before and batch.finished_at >= ended_before:
            reason = f"Batch {batch_id} was retried and has ended again."
        if reason:
            raise BatchError(f"{reason} Nothing was deleted.")
        # Nothing moves it from then on: a retry is refused, and all else moves only batches that have not ended.
        database.batches().filter(pk=batch_id).update(deleting_at=timezone.now(), first_failure=None)
    return True


def _delete_one(batch_id: UUID, *, skip_locked: bool = False) -> int:
    if not _mark(batch_id, skip_locked=skip_locked):
        return 0
    jobs = database.jobs().filter(batch=batch_id)
    last = jobs.order_by("-position").values_list("position", flat=True).first()
    total, size = 0, database.CHUNK
    # By ranges of positions, each in its own transaction: a query for the next rows would step over all deleted ones.
    for start in range(0, 0 if last is None else last + 1, size):
        total += jobs.filter(position__range=(start, start + size - 1))._raw_delete(database.alias())
    with database.atomic_with_lock_timeout() if skip_locked else database.atomic():
        return total + delete_at_once([batch_id])


def delete_at_once(ids: list[UUID]) -> int:
    """Deletes locked or marked batches in the caller's transaction; returns how many job rows."""
    jobs, using = database.jobs(), database.alias()
    total = jobs.filter(batch__in=ids)._raw_delete(using) + jobs.filter(callback_of__in=ids)._raw_delete(using)
    for name in ("TimeBucket", "FailureGroup"):
        database.related(name).filter(batch__in=ids)._raw_delete(using)
    _collect(ids).delete()
    return total


def _collect(ids: list[UUID]) -> Collector:
    """The batches and the project's rows that cascade from them; not the jobs, which may be millions."""
    batches = database.batches().filter(pk__in=ids)
    collector = Collector(using=database.alias(), origin=batches)
    collector.collect(batches)
    return collector


def unfinished_deletions() -> list[UUID]:
    """Batches whose deletion has begun: interrupted ones, and those of other processes."""
    marked = database.batches().filter(deleting_at__isnull=False)
    return list(marked.order_by("pk").values_list("pk", flat=True)[:LIMIT])


def continue_deletions() -> bool:
    """Deletes a chunk of each unfinished deletion, for `BUDGET` seconds; returns whether it deleted anything."""
    return sum(1 for _ in within_budget(_delete_chunks(), BUDGET)) > 0


def _delete_chunks() -> Iterator[UUID]:
    """Yields each batch of which it deleted a chunk: one that it postponed must not use up the time of the rest."""
    for batch_id in unfinished_deletions():
        # A run that was given up may have opened a child since, or a row of the project may point to the batch by now.
        with contain_errors(batch_id):
            delete_next_chunk(batch_id)
            yield batch_id


def delete_next_chunk(batch_id: UUID) -> None:
    """Deletes the next chunk of a tree, the deepest batches first; skips what another transaction has locked."""
    for key in reversed(tree(batch_id)[-TOGETHER:]):
        ids = list(database.jobs().filter(batch=key).values_list("pk", flat=True)[: database.CHUNK])
        if len(ids) == database.CHUNK:
            if _mark(key, skip_locked=True):
                database.jobs().filter(pk__in=ids)._raw_delete(database.alias())
            return
        _delete_one(key, skip_locked=True)
