"""Ended batches that are old enough to go: which they are, and what holds one back.

Nothing of the project goes with them: a batch to which a row of the project points stays, unless that foreign key lets
it go (SET_NULL and the like).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from django.db import IntegrityError, models
from django.db.models import Exists, ForeignObjectRel, OuterRef, Q
from django.db.models.deletion import ProtectedError, RestrictedError

from ..exceptions import BatchError
from . import repairing, rows

if TYPE_CHECKING:
    from ..models import Batch

NOT_HELD = Q(open_callbacks=0, parent=None)
"""Of the ended batches those that nothing of our own still needs: a child batch goes with the batch above it."""
SMALL = 1_000
"""Rows that one transaction deletes, of as many batches as have so few."""
PER_BATCH = 40
"""What deleting a batch costs beside its jobs, in jobs."""
_LET_GO = {
    getattr(models, name, None) for name in ("SET_NULL", "SET_DEFAULT", "DB_SET_NULL", "DB_SET_DEFAULT")
}  # the last two since Django 6.1


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
    found = rows.batches().filter(status=status, finished_at__lt=before).order_by("finished_at", "pk")
    if after:
        found = found.filter(finished_at__gte=after.finished_at)
        found = found.exclude(finished_at=after.finished_at, pk__lte=after.id)
    page = found.values_list("finished_at", "pk", "total", "parent")[:limit]
    return [Ended(at, pk, total, parent is not None) for at, pk, total, parent in page if at]


def free(ended: Iterable[Ended]) -> list[Ended]:
    """Those of them that may go: no callback is open, no batch above has them, no row of the project holds them."""
    by_id = {batch.id: batch for batch in ended}
    ids = _unheld(rows.batches().filter(NOT_HELD, pk__in=list(by_id)))
    below = rows.batches().filter(parent__batch__in=ids).values_list("parent__batch", flat=True)
    of_callbacks = rows.batches().filter(parent__callback_of__in=ids).values_list("parent__callback_of", flat=True)
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
            return _prune_together(group, before)
        for batch in group:
            if batch.has_children and not _is_free(repairing.tree(batch.id)):
                return 0
            is_quick = batch.total <= rows.CHUNK and not batch.has_children
            delete = repairing.delete if in_one_go or is_quick else repairing.begin_deleting
            delete(batch.id, before)
    except (BatchError, ProtectedError, RestrictedError, IntegrityError):
        return 0
    return len(group)


def _prune_together(group: list[Ended], before: datetime) -> int:
    with rows.atomic():
        locked = rows.lock_batches([batch.id for batch in group], skip_locked=True)
        ended = {key for key, batch in locked.items() if batch.finished_at and batch.finished_at < before}
        # Judged again under the locks: a callback may have been put back, a row of the project added.
        ids = [batch.id for batch in free(batch for batch in group if batch.id in ended) if batch.is_small]
        if ids:
            repairing.delete_at_once(ids)
    return len(ids)


def _is_free(tree: list[UUID]) -> bool:
    """Whether no row of the project holds a batch of the tree."""
    return len(_unheld(rows.batches().filter(pk__in=tree))) == len(tree)


def _unheld(batches: "models.QuerySet[Batch]") -> list[UUID]:
    """Those that no row of the project holds."""
    for relation, path in _holding():
        holders = relation.related_model._base_manager.using(rows.alias())
        batches = batches.exclude(Exists(holders.filter(**{f"{relation.field.name}{path}": OuterRef("pk")})))
    return list(batches.values_list("pk", flat=True))


def _holding() -> list[tuple[ForeignObjectRel, str]]:
    """The foreign keys of the project that hold a batch, each with the path from there to the batch."""
    batch, job = rows.batches().model, rows.jobs().model
    found = [(relation, "") for relation in _pointing_to(batch) if not _lets_go(relation)]
    # Jobs are deleted by one statement, so each constraint on them would break it.
    for relation in _pointing_to(job):
        if _is_constraint(relation):
            found += [(relation, "__batch"), (relation, "__callback_of")]
    return found


def _pointing_to(model: type[models.Model]) -> list[ForeignObjectRel]:
    return [
        relation
        for relation in model._meta.get_fields(include_hidden=True)
        if isinstance(relation, ForeignObjectRel)
        and not relation.many_to_many
        and relation.related_model._meta.app_label != rows.APP
        and not relation.related_model._meta.auto_created  # of a ManyToManyField: the link goes, not the row
    ]


def _lets_go(relation: ForeignObjectRel) -> bool:
    on_delete = relation.on_delete
    is_set = getattr(on_delete, "__name__", "") == "set_on_delete"  # SET(...)
    return on_delete in _LET_GO or is_set or (on_delete is models.DO_NOTHING and not _is_constraint(relation))


def _is_constraint(relation: ForeignObjectRel) -> bool:
    return bool(getattr(relation.field, "db_constraint", False))
