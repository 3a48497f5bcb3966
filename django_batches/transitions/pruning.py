"""Ended batches that are old enough to go: which they are, and what holds one back.

Nothing of the project goes with them: a batch to which a row of the project points stays, unless that foreign key lets
it go (SET_NULL and the like).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from django.db import IntegrityError, OperationalError
from django.db.models import Q
from django.db.models.deletion import ProtectedError, RestrictedError

from .. import database
from ..database import foreign_keys
from ..exceptions import BatchError
from . import deleting

NOT_HELD = Q(open_callbacks=0, parent=None, deleting_at=None)
"""Of the ended batches those that nothing of our own still needs: a child batch goes with the batch above it."""
SMALL = 1_000
"""Rows that one transaction deletes, of as many batches as have so few."""
PER_BATCH = 40
"""What deleting a batch costs beside its jobs, in jobs."""


@dataclass(frozen=True, order=True)
class Ended:
    """A batch that has ended; they sort in the order in which they did."""

    finished_at: datetime
    id: UUID
    total: int
    is_child: bool = False
    """It goes with the batch above it."""
    has_children: bool = False

    @property
    def cost(self) -> int:
        return self.total + PER_BATCH

    @property
    def is_small(self) -> bool:
        return self.cost <= SMALL and not self.has_children


def ended_before(status: str, before: datetime, after: Ended | None, limit: int) -> list[Ended]:
    """The batches that ended with `status` before that moment, the oldest first, from the one that follows `after`."""
    found = database.batches().filter(status=status, finished_at__lt=before, deleting_at=None)
    found = found.order_by("finished_at", "pk")
    if after:
        found = found.filter(finished_at__gte=after.finished_at)
        found = found.exclude(finished_at=after.finished_at, pk__lte=after.id)
    page = found.values_list("finished_at", "pk", "total", "parent")[:limit]
    return [Ended(at, pk, total, parent is not None) for at, pk, total, parent in page if at]


def free(ended: Iterable[Ended]) -> list[Ended]:
    """Those of them that may go: no callback is open, no batch above has them, no row of the project holds them."""
    by_id = {batch.id: batch for batch in ended}
    ids = foreign_keys.unheld(database.batches().filter(NOT_HELD, pk__in=list(by_id)))
    below = database.batches().filter(parent__batch__in=ids).values_list("parent__batch", flat=True)
    of_callbacks = database.batches().filter(parent__callback_of__in=ids).values_list("parent__callback_of", flat=True)
    tops = {*below, *of_callbacks}
    return sorted(replace(by_id[key], has_children=key in tops) for key in ids)


def groups(ended: Iterable[Ended]) -> Iterator[list[Ended]]:
    """The batches in groups that are deleted together: small ones in one transaction, each other one alone."""
    group: list[Ended] = []
    for batch in ended:
        fits = batch.is_small and sum(each.cost for each in group) + batch.cost <= SMALL
        if group and not (fits and group[-1].is_small):
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def prune(group: list[Ended], before: datetime, *, in_one_go: bool = True) -> int:
    """Deletes a group; returns how many of it. What is not free any more stays.

    Otherwise than `in_one_go` a batch that is large or has children is only marked, and the coordinator deletes it in
    chunks.
    """
    try:
        if all(batch.is_small for batch in group):
            return _prune_together(group, before, in_one_go)
        for batch in group:
            if batch.has_children and not _is_free(deleting.tree(batch.id)):
                return 0
            is_quick = batch.total <= database.CHUNK and not batch.has_children
            if in_one_go:
                deleting.delete(batch.id, before)
            elif deleting.begin(batch.id, before, skip_locked=True) and is_quick:
                deleting.delete_next_chunk(batch.id)
    except OperationalError as error:
        if not database.is_lock_timeout(error):
            raise
        return sum(prune([batch], before, in_one_go=in_one_go) for batch in group) if len(group) > 1 else 0
    except (BatchError, ProtectedError, RestrictedError, IntegrityError):
        return 0
    return len(group)


def _prune_together(group: list[Ended], before: datetime, in_one_go: bool) -> int:
    with database.atomic() if in_one_go else database.atomic_with_lock_timeout():
        locked = database.lock_batches([batch.id for batch in group], skip_locked=True)
        ended = {key for key, batch in locked.items() if batch.finished_at and batch.finished_at < before}
        # Judged again under the locks: a callback may have been put back, a row of the project added.
        ids = [batch.id for batch in free(batch for batch in group if batch.id in ended) if batch.is_small]
        if ids:
            deleting.delete_at_once(ids)
    return len(ids)


def _is_free(tree: list[UUID]) -> bool:
    """Whether no row of the project holds a batch of the tree."""
    return len(foreign_keys.unheld(database.batches().filter(pk__in=tree))) == len(tree)
