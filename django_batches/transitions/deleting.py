"""Deletes trees of ended batches: marks the root, then deletes in chunks. After a crash the coordinator continues."""

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
BUDGET = 0.02  # seconds per coordinator turn, after which no further chunk begins, because outcomes are waiting
TOGETHER, LIMIT = 20, 100  # the most batches that one chunk deletes, and the most deletions that one query returns


def delete(batch_id: UUID, ended_before: datetime | None = None) -> int:
    """Deletes an ended batch and the batches below it, in chunks, and returns how many job rows it deleted.

    Marks the batch first, so that retries are refused. If this process dies, the coordinator or a second call deletes
    the rest. Raises `BatchError` if a batch of the tree or one of its callbacks has not ended, or if the batch ended at
    or after `ended_before`. Raises `ProtectedError` or `RestrictedError` as `delete()` of any model does.
    """
    return sum(_delete_one(key) for key in reversed(begin_deletion(batch_id, ended_before)))


def tree(root: UUID) -> list[UUID]:
    """Returns a batch and those below it, level by level. Raises `BatchError` if one of those below has not ended."""
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
    """Marks a batch as being deleted, so that the coordinator deletes it. Raises the same errors as `delete()`.

    Returns its tree, the batch itself first. The list is empty if the batch is gone or, with `skip_locked`, locked.
    """
    whole = tree(batch_id)
    # Check for protected rows first: if the deletion failed later, half of a batch would be left behind.
    _collect(whole)
    if holder := foreign_keys.reference(whole, to_jobs_only=True):
        raise BatchError(f"{holder} points to jobs of batch {batch_id}: delete those rows first. Nothing was deleted.")
    # Mark only the root: the batches below have ended, and a retry of one of them would have to reopen the root.
    return whole if _mark(batch_id, ended_before, skip_locked=skip_locked) else []


def _mark(batch_id: UUID, ended_before: datetime | None = None, *, skip_locked: bool = False) -> bool:
    """Marks an ended batch as being deleted. Returns False if it is gone or, with `skip_locked`, locked."""
    with database.atomic():
        batch = database.lock_batch(batch_id, skip_locked=skip_locked)
        if batch is None or batch.deleting_at:
            return batch is not None
        reason = ""
        if database.batches().filter(_AWAITED, pk=batch_id).exists():
            reason = f"The job that opened batch {batch_id} depends on its outcome: wait until that job has ended."
        elif not batch.finished_at:
            reason = f"Batch {batch_id} has not ended: cancel it and wait."
        elif batch.open_callbacks:
            reason = f"Batch {batch_id} has callbacks that have not ended: wait for them."
        elif ended_before and batch.finished_at >= ended_before:
            reason = f"Batch {batch_id} was retried and has ended again since it was selected for deletion."
        if reason:
            raise BatchError(f"{reason} Nothing was deleted.")
        # From now on nothing else changes the batch: retries are refused, and other transitions skip ended batches.
        database.batches().filter(pk=batch_id).update(deleting_at=timezone.now(), first_failure=None)
    return True


def _delete_one(batch_id: UUID, *, skip_locked: bool = False) -> int:
    if not _mark(batch_id, skip_locked=skip_locked):
        return 0
    jobs = database.jobs().filter(batch=batch_id)
    last = jobs.order_by("-position").values_list("position", flat=True).first()
    total, size = 0, database.CHUNK
    # Delete by ranges of positions, each in its own transaction: a query for the next rows would scan deleted rows.
    for start in range(0, 0 if last is None else last + 1, size):
        total += jobs.filter(position__range=(start, start + size - 1))._raw_delete(database.alias())
    with database.atomic_with_lock_timeout() if skip_locked else database.atomic():
        return total + delete_at_once([batch_id])


def delete_at_once(ids: list[UUID]) -> int:
    """Deletes locked or marked batches in the caller's transaction, and returns how many job rows it deleted."""
    jobs, using = database.jobs(), database.alias()
    total = jobs.filter(batch__in=ids)._raw_delete(using) + jobs.filter(callback_of__in=ids)._raw_delete(using)
    for name in ("TimeBucket", "FailureGroup"):
        database.related(name).filter(batch__in=ids)._raw_delete(using)
    _collect(ids).delete()
    return total


def _collect(ids: list[UUID]) -> Collector:
    """Collects the batches and the project's rows that cascade from them, but not the jobs: there may be millions."""
    batches = database.batches().filter(pk__in=ids)
    collector = Collector(using=database.alias(), origin=batches)
    collector.collect(batches)
    return collector


def unfinished_deletions() -> list[UUID]:
    """Returns batches whose deletion has begun, whether it was interrupted or runs in another process."""
    marked = database.batches().filter(deleting_at__isnull=False)
    return list(marked.order_by("pk").values_list("pk", flat=True)[:LIMIT])


def continue_deletions() -> bool:
    """Deletes a chunk of each unfinished deletion, for `BUDGET` seconds. Returns whether a chunk was deleted."""
    return sum(1 for _ in within_budget(_delete_chunks(), BUDGET)) > 0


def _delete_chunks() -> Iterator[UUID]:
    """Yields each batch after deleting a chunk. Postponed batches are not yielded: `within_budget` could stop there."""
    for batch_id in unfinished_deletions():
        # This can fail: since the mark, a lost run may have opened a child, or a row of the project may refer to it.
        with contain_errors(batch_id):
            delete_next_chunk(batch_id)
            yield batch_id


def delete_next_chunk(batch_id: UUID) -> None:
    """Deletes the next chunk of a tree, deepest batches first. Skips batches that another transaction has locked."""
    for key in reversed(tree(batch_id)[-TOGETHER:]):
        ids = list(database.jobs().filter(batch=key).values_list("pk", flat=True)[: database.CHUNK])
        if len(ids) == database.CHUNK:
            if _mark(key, skip_locked=True):
                database.jobs().filter(pk__in=ids)._raw_delete(database.alias())
            return
        _delete_one(key, skip_locked=True)
