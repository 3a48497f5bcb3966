"""What other wings use of the tables. All that differs between databases is in this wing, one file per database."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .base import Columns, Dialect, Rows, Sql
from .postgresql import PostgreSQL
from .sqlite import SQLite
from .tables import BATCH as BATCH
from .tables import JOB as JOB
from .tables import USER_FIELDS as USER_FIELDS
from .tables import alias as alias
from .tables import atomic as atomic
from .tables import batches as batches
from .tables import connection as connection
from .tables import execute as execute
from .tables import jobs as jobs
from .tables import register_models as register_models
from .tables import related as related
from .tables import single_statement as single_statement

if TYPE_CHECKING:
    from ..models import Batch as Batch
    from ..models import BatchJob as BatchJob

APP = "django_batches"
BUCKET = "django_batches_timebucket"
FAILURE_GROUP = "django_batches_failuregroup"

LARGE_JOB_FIELDS = ("arguments", "traceback")
"""The fields of a job that transitions do not read."""
TIME_BUDGET = 2.0
"""Seconds that one step of the coordinator may take. The next turn continues; the coordinator's lease has 15 s."""
CHUNK = 5_000
"""Rows that one transaction of a large cancel, retry or delete changes: short locks, a few megabytes."""
_DIALECTS: dict[str, Dialect] = {"postgresql": PostgreSQL(), "sqlite": SQLite()}


def dialect() -> Dialect:
    return _DIALECTS[connection().vendor]


def unsupported() -> str:
    """The kind of the database if there is no dialect for it, otherwise an empty text."""
    vendor = connection().vendor
    return "" if vendor in _DIALECTS else vendor


def values(columns: Columns, rows: Rows) -> Sql:
    """See `Dialect.values`."""
    return dialect().values(columns, rows)


def parameter(value: Any) -> Any:
    """See `Dialect.parameter`."""
    return dialect().parameter(value)


def as_uuid(value: Any) -> UUID:
    """A key that plain SQL returned; SQLite returns hex text."""
    return value if isinstance(value, UUID) else UUID(value)


def lock_batches(ids: Iterable[UUID], *, skip_locked: bool = False) -> "dict[UUID, Batch]":
    """Locks batches in the order of their keys and returns them without `USER_FIELDS`.

    With `skip_locked` leaves out those that another transaction has locked.
    """
    return {batch.pk: batch for batch in dialect().lock_batches(ids, skip_locked=skip_locked)}


def lock_batch(batch_id: UUID, *, skip_locked: bool = False) -> "Batch | None":
    """The batch, locked; None if it is gone or, with `skip_locked`, locked by another transaction."""
    return lock_batches([batch_id], skip_locked=skip_locked).get(batch_id)


def write_fields(batch: "Batch", **changes: Any) -> None:
    """Writes fields of a locked batch, to its row and to the object."""
    for name, value in changes.items():
        setattr(batch, name, value)
    batches().filter(pk=batch.pk).update(**changes)


@contextmanager
def atomic_with_lock_timeout() -> Iterator[None]:
    """A transaction of the coordinator that touches rows of the project and waits one second at most for their locks.

    Then it raises an error for which `Dialect.is_lock_timeout` is true.
    """
    with atomic():
        dialect().limit_lock_wait()
        yield
