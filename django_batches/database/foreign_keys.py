"""Foreign keys of the project that prevent the deletion of a batch or its jobs."""

from collections.abc import Iterable
from uuid import UUID

from django.db import models
from django.db.models import Exists, ForeignObjectRel, OuterRef

from . import APP, tables

_SETTERS = {
    getattr(models, name, None) for name in ("SET_NULL", "SET_DEFAULT", "DB_SET_NULL", "DB_SET_DEFAULT")
}  # Django has the last two since 6.1


def unreferenced(batches: "models.QuerySet[tables.Batch]") -> list[UUID]:
    """Returns the batches that can be deleted: no foreign key of the project keeps them or one of their jobs."""
    for relation, path in _relations():
        rows = relation.related_model._base_manager.using(tables.alias())
        batches = batches.exclude(Exists(rows.filter(**{f"{relation.field.name}{path}": OuterRef("pk")})))
    return list(batches.values_list("pk", flat=True))


def reference(batch_ids: Iterable[UUID], *, to_jobs_only: bool = False) -> str:
    """Returns a foreign key ("app.Model.field") that keeps one of these batches or a job or callback of theirs, or "".

    With `to_jobs_only`, it ignores the foreign keys to the batches themselves.
    """
    ids = list(batch_ids)
    for relation, path in _relations_to_jobs() if to_jobs_only else _relations():
        name, model = relation.field.name, relation.related_model
        if model._base_manager.using(tables.alias()).filter(**{f"{name}{path}__in": ids}).exists():
            return f"{model._meta.label}.{name}"
    return ""


def _relations() -> list[tuple[ForeignObjectRel, str]]:
    """Returns each foreign key that prevents the deletion of a batch, and the lookup from its target to the batch."""
    to_batches = [(each, "") for each in _foreign_keys(tables.batches().model) if not _lets_go(each)]
    return to_batches + _relations_to_jobs()


def _relations_to_jobs() -> list[tuple[ForeignObjectRel, str]]:
    """Each foreign key constraint to jobs prevents their deletion, because raw SQL deletes jobs without `on_delete`."""
    constraints = [each for each in _foreign_keys(tables.jobs().model) if _is_constraint(each)]
    return [(each, path) for each in constraints for path in ("__batch", "__callback_of")]


def _foreign_keys(model: type[models.Model]) -> list[ForeignObjectRel]:
    return [
        relation
        for relation in model._meta.get_fields(include_hidden=True)
        if isinstance(relation, ForeignObjectRel)
        and not relation.many_to_many
        and relation.related_model._meta.app_label != APP
        and not relation.related_model._meta.auto_created  # the table of a ManyToManyField: its rows are deleted too
    ]


def _lets_go(relation: ForeignObjectRel) -> bool:
    on_delete = relation.on_delete
    is_set = getattr(on_delete, "__name__", "") == "set_on_delete"  # SET(...)
    return on_delete in _SETTERS or is_set or (on_delete is models.DO_NOTHING and not _is_constraint(relation))


def _is_constraint(relation: ForeignObjectRel) -> bool:
    return bool(getattr(relation.field, "db_constraint", False))
