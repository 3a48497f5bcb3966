"""Inserts batches and jobs in as few statements as possible."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from . import dialect, tables
from .base import Sql


class NewJob(NamedTuple):
    """The columns of a new job or callback. The database fills the other columns with their defaults."""

    id: UUID
    func: str
    arguments: str
    queue: str
    timeout: int
    max_attempts: int
    backoff: str
    no_retry: str
    created_at: datetime
    due_at: datetime | None
    batch_id: UUID | None = None
    callback_of_id: UUID | None = None
    event: str = ""
    round: int = 0
    status: str = "created"
    dispatch: int = 0
    position: int = 0

    def at(self, position: int) -> "NewJob":
        return NewJob(*self[:-1], position)  # `_replace` would take three times as long


def batch(new: "tables.Batch", computed: dict[str, Sql], source: str, params: list[Any]) -> dict[str, Any] | None:
    """Inserts a batch in one statement. Returns its `computed` columns, or None if `source` has no row.

    `source` has FROM and WHERE clauses, with `params`. The expressions of `computed` may refer to its row.
    """
    wrapper = tables.connection()
    expressions = {
        field.attname: ("%s", [field.get_db_prep_save(getattr(new, field.attname), wrapper)])
        for field in new._meta.concrete_fields
    } | computed
    found = tables.execute(
        f"INSERT INTO {tables.BATCH} ({', '.join(map(wrapper.ops.quote_name, expressions))})"
        f" SELECT {', '.join(expression for expression, _ in expressions.values())} {source}"
        f" RETURNING {', '.join(computed)}",
        [*(param for _, given in expressions.values() for param in given), *params],
    )
    return dict(zip(computed, found[0], strict=True)) if found else None


def jobs(new: Sequence[NewJob]) -> None:
    dialect().insert(tables.JOB, NewJob, new)
