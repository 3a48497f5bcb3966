"""Access to the tables for the transitions: plain querysets, statements with tables of values, bulk inserts."""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.apps import apps
from django.db import connections, router, transaction
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

CHUNK = 5_000
"""Rows that one transaction of a large cancel, retry or delete takes: short locks, a few megabytes."""

NEW_JOB = {
    "id": "uuid",
    "batch_id": "uuid",
    "callback_of_id": "uuid",
    "event": "text",
    "position": "int",
    "round": "int",
    "func": "text",
    "arguments": "text",
    "queue": "text",
    "timeout": "int",
    "max_attempts": "int",
    "backoff": "text",
    "no_retry": "text",
    "created_at": "timestamptz",
}
"""Columns of a new job row; the others have their defaults in the database."""

NEW_JOB_IN_STATUS = NEW_JOB | {"status": "text", "due_at": "timestamptz", "dispatch": "int"}
"""Columns of the row of a job that does not begin as `created`: scheduled, or claimed at once."""


_USERS_OWN = ("description", "metadata")


def alias() -> str:
    """The database that holds our tables; a transaction on another one neither delays nor undoes a batch."""
    return router.db_for_write(apps.get_model(APP, "Batch"))


def connection() -> "BaseDatabaseWrapper":
    return connections[alias()]


def atomic() -> transaction.Atomic:
    return transaction.atomic(using=alias())


def batches() -> "QuerySet[Batch]":
    return _plain("Batch")


def jobs() -> "QuerySet[BatchJob]":
    return _plain("BatchJob")


def related(name: str) -> "QuerySet[Any]":
    return _plain(name)


def has_a_clock() -> bool:
    """Whether the database tells the time: a host whose clock is wrong would give up batches, or say they are late."""
    return connection().vendor == "postgresql"


def deadline(seconds: int) -> Any:
    """The moment so many seconds from now, to be written; an expression where the database has a clock."""
    return (Now() if has_a_clock() else timezone.now()) + timedelta(seconds=seconds)


def lock_batches(ids: Iterable[UUID], *, skip_locked: bool = False) -> "dict[UUID, Batch]":
    """The batches, locked in the order of their keys. With `skip_locked` those that nobody else holds.

    Without their descriptions and metadata, which users may make as large as they like.
    """
    if connection().vendor != "postgresql":
        return {batch.pk: batch for batch in batches().filter(pk__in=list(ids)).order_by("pk").defer(*_USERS_OWN)}
    # Plain SQL: a queryset takes four times as long, and the book-keeper does it in every transaction.
    model: type[Batch] = apps.get_model(APP, "Batch")
    names = [field.attname for field in model._meta.concrete_fields if field.name not in _USERS_OWN]
    found = execute(
        f"SELECT {', '.join(names)} FROM {BATCH} WHERE id = ANY(%s)"
        f" ORDER BY id FOR UPDATE{' SKIP LOCKED' if skip_locked else ''}",
        [list(ids)],
    )
    return {batch.pk: batch for batch in (model.from_db(alias(), names, row) for row in found)}


def for_update_skip_locked() -> str:
    """For a sub-select of the book-keeper: rows that user code holds locked are passed over, never waited for."""
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


def insert_jobs(rows: Sequence[Sequence[Any]]) -> None:
    """Inserts job rows of the columns `NEW_JOB` or `NEW_JOB_IN_STATUS`."""
    others = [row for row in rows if len(row) > len(NEW_JOB)]
    plain = [row for row in rows if len(row) == len(NEW_JOB)] if others else rows
    if plain:
        _insert(plain, NEW_JOB)
    if others:
        _insert(others, NEW_JOB_IN_STATUS)


def _insert(rows: Sequence[Sequence[Any]], kinds: dict[str, str]) -> None:
    """In one go: COPY on PostgreSQL, six times as fast as INSERT."""
    columns = ", ".join(kinds)
    wrapper = connection()
    with wrapper.cursor() as cursor:
        if wrapper.vendor == "postgresql" and hasattr(cursor, "copy"):
            # The cursor's own method: its errors must become Django's, or nobody up the road catches them.
            with wrapper.wrap_database_errors, cursor.copy(f"COPY {JOB} ({columns}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            table, params = values(kinds, rows)
            cursor.execute(f"INSERT INTO {JOB} ({columns}) SELECT * FROM {table} WHERE true", params)


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


def _plain(name: str) -> "QuerySet[Any]":
    model: type[Model] = apps.get_model(APP, name)
    return QuerySet(model, using=alias())


def _portable(row: Sequence[Any]) -> list[Any]:
    adapt = connection().ops.adapt_datetimefield_value
    return [
        value.hex if isinstance(value, UUID) else str(adapt(value)) if hasattr(value, "isoformat") else value
        for value in row
    ]
