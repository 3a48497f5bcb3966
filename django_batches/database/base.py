"""The code that depends on the database's kind. To support another kind, write a subclass of `Dialect` in a file of its
own and add it to `database._DIALECTS`."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from django.db import Error
from django.db.models import Func, IntegerField
from django.utils import timezone

from . import tables

Columns = type[tuple[Any, ...]] | dict[str, type]
"""Names and types of columns, as a named tuple or a dict. The types are UUID, int, str, bool and datetime."""
Rows = Sequence[tuple[Any, ...]]
Sql = tuple[str, list[Any]]
"""An SQL expression and its parameters."""


class Room(NamedTuple):
    """A limit for one claim: up to `room` jobs of the batch may be claimed, starting at position `start`."""

    batch_id: UUID
    room: int
    start: int


class OctetLength(Func):
    """The length of a text in bytes. Unlike `length()`, PostgreSQL computes it without reading the text itself."""

    function = "OCTET_LENGTH"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        # SQLite has octet_length() only since 3.43. LENGTH gives the same number, because our texts are ASCII.
        return super().as_sql(compiler, connection, function="LENGTH", **context)


def types_of(columns: Columns) -> dict[str, Any]:
    """Returns the type of each column by its name. A nullable column has the type `T | None`."""
    return columns if isinstance(columns, dict) else columns.__annotations__


class Dialect:
    """One kind of database. The methods with a body suit any database that uses the clock of its clients' host."""

    can_write_in_with: ClassVar = False
    """Whether a WITH clause may contain INSERT and UPDATE."""

    def values(self, columns: Columns, rows: Rows) -> Sql:
        """Returns a table `v` of the rows, with columns `v_<name>`. Its SQL text does not depend on their number."""
        raise NotImplementedError

    def parameter(self, value: Any) -> Any:
        """Converts a key or a time to the form that raw SQL takes as a parameter."""
        return value

    def first_jobs(self, condition: str) -> str:
        """Limits a condition, which ends with a LIMIT, to the first jobs that no other transaction has locked."""
        return f"id IN (SELECT id FROM {tables.JOB} WHERE {condition})"

    def jobs_to_claim(self, queue: str, rooms: Sequence[Room], limit: int) -> Sql:
        """Returns the condition for the next jobs of a queue: the first of each batch, then the second of each, ..."""
        raise NotImplementedError

    def insert(self, table: str, columns: Columns, rows: Rows) -> None:
        values, params = self.values(columns, rows)
        names = ", ".join(types_of(columns))
        tables.execute(f"INSERT INTO {table} ({names}) SELECT * FROM {values} WHERE true", params)

    def batch(self, batch_id: UUID) -> "tables.Batch":
        """Reads a batch from the database. Raises `Batch.DoesNotExist`."""
        return tables.batches().get(pk=batch_id)

    def lock_batches(self, ids: Iterable[UUID], *, skip_locked: bool) -> "list[tables.Batch]":
        found = tables.batches().filter(pk__in=list(ids)).order_by("pk").defer(*tables.USER_FIELDS)
        return list(found.select_for_update(skip_locked=skip_locked))

    def now(self) -> datetime:
        """Returns the time of the database's clock, if it has one. The clock of a host may be wrong."""
        return timezone.now()

    def now_sql(self) -> Sql:
        return "%s", [self.parameter(timezone.now())]

    def times_of_new_batch(self, deadline: int | None) -> dict[str, Sql]:
        """Returns expressions for those times of a new batch that come from the database's clock."""
        return {}

    def touch_lease(self, name: str, token: int, seconds: int) -> datetime | None:
        """Extends the lease and limits idle time. Returns the time, or None if another coordinator has the lease."""
        now = self.now()
        own = tables.related("Lease").filter(pk=name, token=token)
        return now if own.update(expires_at=now + timedelta(seconds=seconds)) else None

    def limit_idle_time(self, seconds: int) -> None:
        """Makes the database end this transaction if its client sends nothing for this many seconds."""

    def limit_lock_wait(self) -> None:
        """Makes each statement of this transaction fail if it waits for a lock for more than one second."""

    def is_lock_timeout(self, error: Error) -> bool:
        return False

    def is_missing_table(self, error: Error) -> bool:
        """Whether the error says that a table or column does not exist, because `migrate` has not run yet."""
        raise NotImplementedError
