"""What differs between databases. To support another one, add a file with a subclass, and name it in
`database._DIALECTS`."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from django.db import Error
from django.db.models import Func, IntegerField
from django.utils import timezone

from . import tables

Columns = type[tuple[Any, ...]] | dict[str, type]
"""Names and types of columns: a named tuple or a dict. The types are UUID, int, str, bool and datetime."""
Rows = Sequence[tuple[Any, ...]]
Sql = tuple[str, list[Any]]
"""The text of an expression and its parameters."""


class Room(NamedTuple):
    """Up to `room` jobs of a batch may be claimed, from position `start` on."""

    batch_id: UUID
    room: int
    start: int


class OctetLength(Func):
    """The bytes of a text. PostgreSQL answers this without reading the text itself, unlike its `length()`."""

    function = "OCTET_LENGTH"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        # octet_length() needs SQLite 3.43. Our texts are ASCII.
        return super().as_sql(compiler, connection, function="LENGTH", **context)


def types_of(columns: Columns) -> dict[str, Any]:
    """The types by name, some of them `T | None`."""
    return columns if isinstance(columns, dict) else columns.__annotations__


class Dialect:
    """One database. The methods with a body work on any database whose clients share its clock."""

    can_write_in_with: ClassVar = False
    """WITH may contain INSERT and UPDATE."""

    def values(self, columns: Columns, rows: Rows) -> Sql:
        """A table `v` of rows, with a column `v_name` per field. Its text does not depend on the number of rows."""
        raise NotImplementedError

    def parameter(self, value: Any) -> Any:
        """A key or time as a parameter of plain SQL."""
        return value

    def first_jobs(self, condition: str) -> str:
        """The jobs that meet a condition which ends with a LIMIT; skips rows that other transactions have locked."""
        return f"id IN (SELECT id FROM {tables.JOB} WHERE {condition})"

    def jobs_to_claim(self, queue: str, rooms: Sequence[Room], limit: int) -> Sql:
        """The condition for the next jobs of a queue, in turns over the batches."""
        raise NotImplementedError

    def insert(self, table: str, columns: Columns, rows: Rows) -> None:
        values, params = self.values(columns, rows)
        names = ", ".join(types_of(columns))
        tables.execute(f"INSERT INTO {table} ({names}) SELECT * FROM {values} WHERE true", params)

    def batch(self, batch_id: UUID) -> "tables.Batch":
        """A batch as it is now; raises `Batch.DoesNotExist`."""
        return tables.batches().get(pk=batch_id)

    def lock_batches(self, ids: Iterable[UUID], *, skip_locked: bool) -> "list[tables.Batch]":
        found = tables.batches().filter(pk__in=list(ids)).order_by("pk").defer(*tables.USER_FIELDS)
        return list(found.select_for_update(skip_locked=skip_locked))

    def now(self) -> datetime:
        """The time by the database's clock, if it has one: a host with a wrong clock must not decide anything."""
        return timezone.now()

    def now_sql(self) -> Sql:
        return "%s", [self.parameter(timezone.now())]

    def times_of_new_batch(self, deadline: int | None) -> dict[str, Sql]:
        """The columns of a new batch that the database's clock fills."""
        return {}

    def touch_lease(self, name: str, token: int, seconds: int) -> datetime | None:
        """Extends the lease and returns the time, or None if another coordinator has it. Also limits idle time."""
        now = self.now()
        own = tables.related("Lease").filter(pk=name, token=token)
        return now if own.update(expires_at=now + timedelta(seconds=seconds)) else None

    def limit_idle_time(self, seconds: int) -> None:
        """Makes the database end this transaction if its client is silent for so long."""

    def limit_lock_wait(self) -> None:
        """Makes each statement of this transaction wait one second at most for a lock."""

    def is_lock_timeout(self, error: Error) -> bool:
        return False

    def is_missing_table(self, error: Error) -> bool:
        """Whether a table or column does not exist: `migrate` has not run yet."""
        raise NotImplementedError
