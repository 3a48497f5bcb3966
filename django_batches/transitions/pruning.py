"""Finds ended batches that are old enough to be deleted, and deletes those to which no row of the project refers.

Pruning never deletes a row of the project: a batch stays as long as such a row refers to it, unless the foreign key
only has to be cleared (for example with SET_NULL).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from django.db import IntegrityError, OperationalError
from django.db.models.deletion import ProtectedError, RestrictedError

from .. import database
from ..database import foreign_keys
from ..exceptions import BatchError
from . import deleting

SMALL, PER_BATCH = 1_000, 40
"""The most jobs that one transaction deletes, and the number of jobs that the batch row itself counts as."""


@dataclass(frozen=True, order=True)
class Ended:
    """A batch that has ended. Instances sort by the time when they ended."""

    finished_at: datetime
    id: UUID
    total: int
    is_child: bool = False  # if so, it is deleted together with the batch above it
    has_children: bool = False

    @property
    def is_small(self) -> bool:
        return self.total + PER_BATCH <= SMALL and not self.has_children


def ended_before(status: str, before: datetime, after: Ended | None, limit: int) -> list[Ended]:
    """Returns a page of batches that ended with `status` before that time, oldest first, starting after `after`."""
    found = database.batches().filter(status=status, finished_at__lt=before, deleting_at=None)
    if after:
        found = found.filter(finished_at__gte=after.finished_at)
        found = found.exclude(finished_at=after.finished_at, pk__lte=after.id)
    page = found.order_by("finished_at", "pk").values_list("finished_at", "pk", "total", "parent")[:limit]
    return [Ended(at, pk, total, parent is not None) for at, pk, total, parent in page if at]


def deletable(ended: Iterable[Ended]) -> list[Ended]:
    """Returns the batches that have no open callbacks and no parent, and to which no row of the project refers."""
    by_id = {batch.id: batch for batch in ended}
    unused = database.batches().filter(open_callbacks=0, parent=None, deleting_at=None, pk__in=list(by_id))
    ids = foreign_keys.unreferenced(unused)
    of_jobs = database.batches().filter(parent__batch__in=ids).values_list("parent__batch", flat=True)
    of_callbacks = database.batches().filter(parent__callback_of__in=ids).values_list("parent__callback_of", flat=True)
    tops = {*of_jobs, *of_callbacks}
    return sorted(replace(by_id[key], has_children=key in tops) for key in ids)


def groups(ended: Iterable[Ended]) -> Iterator[list[Ended]]:
    """Groups batches for deletion: small ones share a transaction, and each other batch is a group of its own."""
    group: list[Ended] = []
    for batch in ended:
        fits = batch.is_small and sum(each.total + PER_BATCH for each in [*group, batch]) <= SMALL
        if group and not (fits and group[-1].is_small):
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def prune(group: list[Ended], before: datetime, *, in_full: bool = True) -> int:
    """Deletes the batches of a group that are still deletable, and returns how many it deleted or marked.

    Without `in_full`, only marks a batch that is large or has children, and the coordinator deletes it in chunks.
    """
    try:
        if all(batch.is_small for batch in group):
            return _prune_together(group, before, in_full)
        for batch in group:
            tree = deleting.tree(batch.id) if batch.has_children else []
            if len(foreign_keys.unreferenced(database.batches().filter(pk__in=tree))) < len(tree):
                return 0
            is_quick = batch.total <= database.CHUNK and not batch.has_children
            if in_full:
                deleting.delete(batch.id, before)
            elif deleting.begin_deletion(batch.id, before, skip_locked=True) and is_quick:
                deleting.delete_next_chunk(batch.id)
    except OperationalError as error:
        if not database.dialect().is_lock_timeout(error):
            raise
        return sum(prune([batch], before, in_full=in_full) for batch in group) if len(group) > 1 else 0
    except (BatchError, ProtectedError, RestrictedError, IntegrityError):
        return 0
    return len(group)


def _prune_together(group: list[Ended], before: datetime, in_full: bool) -> int:
    with database.atomic() if in_full else database.atomic_with_lock_timeout():
        locked = database.lock_batches([batch.id for batch in group], skip_locked=True)
        ended = {key for key, batch in locked.items() if batch.finished_at and batch.finished_at < before}
        # Check again under the locks: since the first check, a callback may have been retried or a row added.
        ids = [batch.id for batch in deletable(batch for batch in group if batch.id in ended) if batch.is_small]
        if ids:
            deleting.delete_at_once(ids)
    return len(ids)
