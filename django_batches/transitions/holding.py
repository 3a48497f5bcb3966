"""The foreign keys of the project that keep a batch from being deleted."""

from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

from django.db import models
from django.db.models import Exists, ForeignObjectRel, OuterRef, Q

from . import rows

if TYPE_CHECKING:
    from ..models import Batch

_LET_GO = {
    getattr(models, name, None) for name in ("SET_NULL", "SET_DEFAULT", "DB_SET_NULL", "DB_SET_DEFAULT")
}  # the last two since Django 6.1


def unheld(batches: "models.QuerySet[Batch]") -> list[UUID]:
    """Those that no row of the project holds."""
    for relation, path in _holding():
        holders = relation.related_model._base_manager.using(rows.alias())
        batches = batches.exclude(Exists(holders.filter(**{f"{relation.field.name}{path}": OuterRef("pk")})))
    return list(batches.values_list("pk", flat=True))


def holder(batch_ids: Iterable[UUID]) -> str:
    """A foreign key of the project by which a row holds one of these batches or a job of theirs; empty without."""
    ids = list(batch_ids)
    for relation, path in _holding():
        held = {f"{relation.field.name}{path}__in": ids}
        if relation.related_model._base_manager.using(rows.alias()).filter(**held).exists():
            return f"{relation.related_model._meta.label}.{relation.field.name}"
    return ""


def holders_of_jobs(batch_ids: Iterable[UUID]) -> str:
    """A foreign key of the project by which a row holds a job or callback of these batches; empty if there is none."""
    ids = list(batch_ids)
    for relation in _constraints_on_jobs():
        name, model = relation.field.name, relation.related_model
        of_them = Q(**{f"{name}__batch__in": ids}) | Q(**{f"{name}__callback_of__in": ids})
        if model._base_manager.using(rows.alias()).filter(of_them).exists():
            return f"{model._meta.label}.{name}"
    return ""


def _holding() -> list[tuple[ForeignObjectRel, str]]:
    """The foreign keys of the project that hold a batch, each with the path from there to the batch."""
    found = [(relation, "") for relation in _pointing_to(rows.batches().model) if not _lets_go(relation)]
    for relation in _constraints_on_jobs():
        found += [(relation, "__batch"), (relation, "__callback_of")]
    return found


def _constraints_on_jobs() -> list[ForeignObjectRel]:
    """Jobs are deleted by one statement, so each constraint on them would break it."""
    return [relation for relation in _pointing_to(rows.jobs().model) if _is_constraint(relation)]


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
