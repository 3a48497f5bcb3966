"""The foreign keys of the project that keep a batch from being deleted."""

from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

from django.db import models
from django.db.models import Exists, ForeignObjectRel, OuterRef

from . import tables

if TYPE_CHECKING:
    from ..models import Batch

_LET_GO = {
    getattr(models, name, None) for name in ("SET_NULL", "SET_DEFAULT", "DB_SET_NULL", "DB_SET_DEFAULT")
}  # the last two since Django 6.1


def unheld(batches: "models.QuerySet[Batch]") -> list[UUID]:
    """Those that no row of the project holds."""
    for relation, path in _holding():
        holders = relation.related_model._base_manager.using(tables.alias())
        batches = batches.exclude(Exists(holders.filter(**{f"{relation.field.name}{path}": OuterRef("pk")})))
    return list(batches.values_list("pk", flat=True))


def holder(batch_ids: Iterable[UUID]) -> str:
    """A foreign key of the project by which a row holds one of these batches or a job of theirs; empty without."""
    return _first(_holding(), batch_ids)


def holders_of_jobs(batch_ids: Iterable[UUID]) -> str:
    """A foreign key of the project by which a row holds a job or callback of these batches; empty without."""
    return _first(_holding_jobs(), batch_ids)


def _first(holding: list[tuple[ForeignObjectRel, str]], batch_ids: Iterable[UUID]) -> str:
    ids = list(batch_ids)
    for relation, path in holding:
        name, model = relation.field.name, relation.related_model
        if model._base_manager.using(tables.alias()).filter(**{f"{name}{path}__in": ids}).exists():
            return f"{model._meta.label}.{name}"
    return ""


def _holding() -> list[tuple[ForeignObjectRel, str]]:
    """The foreign keys of the project that hold a batch, each with the path from there to the batch."""
    on_batches = [(relation, "") for relation in _pointing_to(tables.batches().model) if not _lets_go(relation)]
    return on_batches + _holding_jobs()


def _holding_jobs() -> list[tuple[ForeignObjectRel, str]]:
    """Jobs are deleted by one statement, so each constraint on them would break it."""
    constraints = [relation for relation in _pointing_to(tables.jobs().model) if _is_constraint(relation)]
    return [(relation, path) for relation in constraints for path in ("__batch", "__callback_of")]


def _pointing_to(model: type[models.Model]) -> list[ForeignObjectRel]:
    return [
        relation
        for relation in model._meta.get_fields(include_hidden=True)
        if isinstance(relation, ForeignObjectRel)
        and not relation.many_to_many
        and relation.related_model._meta.app_label != tables.APP
        and not relation.related_model._meta.auto_created  # of a ManyToManyField: the link goes, not the row
    ]


def _lets_go(relation: ForeignObjectRel) -> bool:
    on_delete = relation.on_delete
    is_set = getattr(on_delete, "__name__", "") == "set_on_delete"  # SET(...)
    return on_delete in _LET_GO or is_set or (on_delete is models.DO_NOTHING and not _is_constraint(relation))


def _is_constraint(relation: ForeignObjectRel) -> bool:
    return bool(getattr(relation.field, "db_constraint", False))
