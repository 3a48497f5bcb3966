"""Access to the tables for the transitions: plain querysets, statements with tables of values, bulk inserts."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import Error, connections, router, transaction
from django.db.models import Model, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from ..models import Batch, BatchJob

APP = "django_batches"
BATCH = "django_batches_batch"
JOB = "django_batches_batchjob"
BUCKET = "django_batches_timebucket"
FAILURE_GROUP = "django_batches_failuregroup"

TIME_BUDGET = 2.0
"""Seconds after which the coordinator leaves the rest of a tree to its next turn: its lease has 15."""
CHUNK = 5_000
"""Rows that one transaction of a large cancel, retry or delete takes: short locks, a few megabytes."""


USER_FIELDS = ("description", "metadata")
"""The fields of a batch that users write, as large as they like."""
LARGE_JOB_FIELDS = ("arguments", "traceback")
"""The fields of a job that transitions do not read."""


_models: dict[str, type[Model]] = {}


def register_models(*models: type[Model]) -> None:
    """The model classes of the tables; called by `django_batches.models`, which lies above this wing."""
    _models.update((model.__name__, model) for model in models)


def alias() -> str:
    """The database that holds our tables; a transaction on another one neither delays nor undoes a batch."""
    return router.db_for_write(_models["Batch"])


def connection() -> "BaseDatabaseWrapper":
    return connections[alias()]


def atomic() -> transaction.Atomic:
    return transaction.atomic(using=alias())


@contextmanager
def atomic_with_lock_timeout() -> Iterator[None]:
    """A transaction of the coordinator that touches rows of the project: it waits for their locks for a second at most.

    Then an error comes for which `is_lock_timeout` is true.
    """
    with atomic():
        if connection().vendor == "postgresql":
            execute("SET LOCAL lock_timeout = '1s'", [])
        yield


def is_lock_timeout(error: Error) -> bool:
    return getattr(error.__cause__, "sqlstate", None) == "55P03"


@contextmanager
def single_statement() -> Iterator[None]:
    """For a single statement: in no transaction but its own, where BEGIN and COMMIT would be two round trips more."""
    wrapper = connection()
    if not wrapper.get_autocommit():
        with atomic():
            yield
        return
    try:
        yield
    except Error:
        wrapper.close_if_unusable_or_obsolete()  # as `atomic` does, or a lost connection would stay lost
        raise


def is_missing_table(error: Error) -> bool:
    """Whether it speaks of a table or column that is not there: somebody has yet to run `migrate`."""
    state = getattr(error.__cause__, "sqlstate", None)
    return state in ("42P01", "42703") if state else str(error).startswith(("no such table", "no such column"))


def batches() -> "QuerySet[Batch]":
    return _plain("Batch")


def jobs() -> "QuerySet[BatchJob]":
    return _plain("BatchJob")


def related(name: str) -> "QuerySet[Any]":
    return _plain(name)


def has_clock() -> bool:
    """Whether the database tells the time: a host whose clock is wrong would give up batches, or say they are late."""
    return connection().vendor == "postgresql"


def deadline(seconds: int) -> Any:
    """The moment so many seconds from now, to be written; an expression where the database has a clock."""
    return (Now() if has_clock() else timezone.now()) + timedelta(seconds=seconds)


def batch(batch_id: UUID) -> "Batch":
    """A batch as it is now; raises `Batch.DoesNotExist`."""
    if connection().vendor != "postgresql":
        return batches().get(pk=batch_id)
    model: Any = _models["Batch"]
    found = _select("WHERE id = %s", [batch_id])
    if not found:
        raise model.DoesNotExist(f"There is no batch {batch_id}.")
    metadata: Any = model._meta.get_field("metadata")
    found[0].metadata = metadata.from_db_value(found[0].metadata, None, connection())
    return found[0]


def lock_batches(ids: Iterable[UUID], *, skip_locked: bool = False) -> "dict[UUID, Batch]":
    """The batches, locked in the order of their keys. With `skip_locked` those that nobody else holds.

    Without their descriptions and metadata, which users may make as large as they like.
    """
    if connection().vendor != "postgresql":
        return {batch.pk: batch for batch in batches().filter(pk__in=list(ids)).order_by("pk").defer(*USER_FIELDS)}
    which = f"WHERE id = ANY(%s) ORDER BY id FOR UPDATE{' SKIP LOCKED' if skip_locked else ''}"
    return {batch.pk: batch for batch in _select(which, [list(ids)], without=USER_FIELDS)}


def for_update_skip_locked() -> str:
    """For a sub-select of the coordinator: rows that user code holds locked are passed over, never waited for."""
    return " FOR UPDATE SKIP LOCKED" if connection().features.has_select_for_update_skip_locked else ""


def values(columns: dict[str, str], rows: Sequence[Sequence[Any]], *, numbered: bool = False) -> tuple[str, list[Any]]:
    """SQL and parameters of a table `v` made of `rows`; its columns are the keys of `columns` with `v_` before.

    With `numbered`, for PostgreSQL alone, it has a last column `v_number`: the place of the row, from 1.

    One parameter per column (PostgreSQL) or one in all (SQLite), so that a statement's text does not depend on the
    number of rows. `columns` gives each column's PostgreSQL type.
    """
    names = [f"v_{name}" for name in columns]
    if connection().vendor == "postgresql":
        arrays = ", ".join(f"%s::{kind}[]" for kind in columns.values())
        literals = [
            "{" + ",".join(_ELEMENTS[kind](column)) + "}"
            for kind, column in zip(columns.values(), zip(*rows, strict=True), strict=bool(rows))
        ]
        made = f"unnest({arrays}){' WITH ORDINALITY' if numbered else ''}"
        names += ["v_number"] if numbered else []
        return f"{made} AS v({', '.join(names)})", literals or ["{}" for _ in columns]
    picks = ", ".join(f"json_extract(value, '$[{index}]') AS {name}" for index, name in enumerate(names))
    return f"(SELECT {picks} FROM json_each(%s)) AS v", [json.dumps([_portable(row) for row in rows])]


def awaiting(executions: Iterable[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
    """Those of the runs (job, dispatch) whose children have not all told how they ended."""
    wanted = set(executions)
    if not wanted:
        return set()
    children = batches().filter(parent_id__in=[key for key, _ in wanted], is_awaited=True)
    return wanted & set(children.values_list("parent_id", "parent_dispatch"))


def execute(sql: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Runs a statement; its returned rows, if any."""
    with connection().cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall() if cursor.description else []


def parameter(value: Any) -> Any:
    """A key or a time as a parameter of a plain statement."""
    return _portable([value])[0] if connection().vendor != "postgresql" else value


def as_uuid(value: Any) -> UUID:
    """A key as it came back from a plain statement (SQLite has them as hex text)."""
    return value if isinstance(value, UUID) else UUID(value)


def _texts(column: Sequence[str | None]) -> list[str]:
    return [
        "NULL"
        if value is None
        else f'"{value}"'
        if value.isalnum()
        else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for value in column
    ]


# The elements of PostgreSQL's arrays as text: four times as fast as the driver's own way through a list.
_ELEMENTS: dict[str, Callable[[Sequence[Any]], list[str]]] = {
    "uuid": lambda column: ["NULL" if value is None else value.hex for value in column],
    "int": lambda column: ["NULL" if value is None else str(value) for value in column],
    "boolean": lambda column: ["NULL" if value is None else str(value) for value in column],
    "timestamptz": lambda column: ["NULL" if value is None else f'"{value}"' for value in column],
    "text": _texts,
}


def _select(which: str, params: list[Any], without: Sequence[str] = ()) -> "list[Batch]":
    """Batches by plain SQL: a queryset takes four times as long, and the coordinator does it in every transaction."""
    model: Any = _models["Batch"]
    names = [field.attname for field in model._meta.concrete_fields if field.name not in without]
    found = execute(f"SELECT {', '.join(names)} FROM {BATCH} {which}", params)
    return [model.from_db(alias(), names, row) for row in found]


def _plain(name: str) -> "QuerySet[Any]":
    return QuerySet(_models[name], using=alias())


def _portable(row: Sequence[Any]) -> list[Any]:
    adapt = connection().ops.adapt_datetimefield_value
    return [
        value.hex if isinstance(value, UUID) else str(adapt(value)) if hasattr(value, "isoformat") else value
        for value in row
    ]
