"""Access to the app's tables for the other packages. Only this package has code that depends on the database's kind."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .base import Columns, Dialect, Rows, Sql
from .postgresql import PostgreSQL
from .sqlite import SQLite
from .tables import (
    BATCH as BATCH,
    JOB as JOB,
    USER_FIELDS as USER_FIELDS,
    alias as alias,
    atomic as atomic,
    batches as batches,
    connection as connection,
    execute as execute,
    jobs as jobs,
    register_models as register_models,
    related as related,
    single_statement as single_statement,
)

if TYPE_CHECKING:
    from ..models import Batch as Batch, BatchJob as BatchJob

APP = "django_batches"
BUCKET = "django_batches_timebucket"
FAILURE_GROUP = "django_batches_failuregroup"

LARGE_JOB_FIELDS = ("arguments", "traceback")
"""Large fields of `BatchJob` that transitions defer, because they never read them."""
TIME_BUDGET = 2.0
"""Seconds that one step of the coordinator may take, so that it can renew its 15 s lease. The next turn continues."""
CHUNK = 5_000
"""Rows per transaction of a large cancel, retry or delete. It keeps locks short and memory at a few megabytes."""
_DIALECTS: dict[str, Dialect] = {"postgresql": PostgreSQL(), "sqlite": SQLite()}


def dialect() -> Dialect:
    return _DIALECTS[connection().vendor]


def unsupported() -> str:
    """Returns Django's name of the database's kind, such as `mysql`, if the app does not support it, otherwise ""."""
    vendor = connection().vendor
    return "" if vendor in _DIALECTS else vendor


def values(columns: Columns, rows: Rows) -> Sql:
    return dialect().values(columns, rows)


def parameter(value: Any) -> Any:
    return dialect().parameter(value)


def as_uuid(value: Any) -> UUID:
    """Converts a key that raw SQL returned to a UUID. SQLite returns keys as hexadecimal text."""
    return value if isinstance(value, UUID) else UUID(value)


def lock_batches(ids: Iterable[UUID], *, skip_locked: bool = False) -> "dict[UUID, Batch]":
    """Locks batches in the order of their keys and returns them without `USER_FIELDS`.

    With `skip_locked`, it leaves out the batches that another transaction has locked.
    """
    return {batch.pk: batch for batch in dialect().lock_batches(ids, skip_locked=skip_locked)}


def lock_batch(batch_id: UUID, *, skip_locked: bool = False) -> "Batch | None":
    """Locks and returns a batch, or None if it does not exist or if `skip_locked` skips it; see `lock_batches`."""
    return lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)


def write_fields(batch: "Batch", **changes: Any) -> None:
    """Sets fields of a locked batch, both in its row and in the object."""
    for name, value in changes.items():
        setattr(batch, name, value)
    batches().filter(pk=batch.pk).update(**changes)


@contextmanager
def atomic_with_lock_timeout() -> Iterator[None]:
    """Opens a transaction in which the coordinator waits at most one second for each lock on rows of the project.

    A statement that waits longer raises an error for which `Dialect.is_lock_timeout` is true.
    """
    with atomic():
        dialect().limit_lock_wait()
        yield
