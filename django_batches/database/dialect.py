"""What differs between databases. To support another one, add a file with a subclass, and name it in `statements`."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from uuid import UUID

from django.db import Error
from django.utils import timezone

from . import tables

if TYPE_CHECKING:
    from ..models import Batch

Rows = Sequence[tuple[Any, ...]]
Sql = tuple[str, list[Any]]
"""The text of an expression and its parameters."""


class Room(NamedTuple):
    """Jobs of a batch that may be claimed."""

    batch_id: UUID
    room: int
    """How many of them at most."""
    start: int
    """The first position to look at."""


class Dialect:
    """One database. The methods with a body work for any database whose clients share one clock."""

    can_write_in_with: ClassVar = False
    """WITH may contain INSERT and UPDATE."""
    skip_locked: ClassVar = ""
    """Ends a sub-select of rows to update, so that the coordinator never waits for rows that user code has locked."""

    # Values

    def values(self, columns: type[tuple[Any, ...]], rows: Rows) -> Sql:
        """A table `v` of `rows`, with a column `v_name` for each field of the named tuple `columns`.

        The text does not depend on the number of rows. The types of the fields matter: UUID, int, str, bool, datetime.
        """
        raise NotImplementedError

    def parameter(self, value: Any) -> Any:
        """A key or time as a parameter of plain SQL."""
        return value

    def among(self, keys: str) -> str:
        """The condition that a column is one of the keys that a sub-select with a LIMIT returns."""
        return f"IN ({keys})"

    # Clock

    def now(self) -> datetime:
        """The time, by the database's clock if it has one: a host with a wrong clock must not decide anything."""
        return timezone.now()

    def now_sql(self) -> Sql:
        return "%s", [self.parameter(timezone.now())]

    def deadline(self, seconds: int) -> Any:
        """The time in so many seconds, as a value for `QuerySet.update`."""
        return timezone.now() + timedelta(seconds=seconds)

    def times_of_new_batch(self, deadline: int | None) -> dict[str, Sql]:
        """The columns of a new batch that only the database's clock can fill."""
        return {}

    # Batches and jobs

    def batch(self, batch_id: UUID) -> "Batch":
        return tables.batches().get(pk=batch_id)

    def lock_batches(self, ids: Iterable[UUID], *, skip_locked: bool) -> "list[Batch]":
        found = tables.batches().filter(pk__in=list(ids)).order_by("pk").defer(*tables.USER_FIELDS)
        return list(found.select_for_update(skip_locked=skip_locked))

    def insert(self, table: str, columns: type[tuple[Any, ...]], rows: Rows) -> None:
        values, params = self.values(columns, rows)
        names = ", ".join(columns._fields)  # type: ignore[attr-defined]
        tables.execute(f"INSERT INTO {table} ({names}) SELECT * FROM {values} WHERE true", params)

    def jobs_to_claim(self, queue: str, rooms: Sequence[Room], limit: int) -> Sql:
        """The condition for the next jobs of a queue, in turns over the batches."""
        raise NotImplementedError

    # Coordinator

    def touch_lease(self, name: str, token: int, seconds: int) -> datetime | None:
        """Extends the lease and returns the time; None if another coordinator has it. Also limits idle time."""
        now = self.now()
        own = tables.related("Lease").filter(pk=name, token=token)
        return now if own.update(expires_at=now + timedelta(seconds=seconds)) else None

    def limit_idle_time(self, seconds: int) -> None:
        """Makes the database end this transaction if its client falls silent for so long."""

    def limit_lock_wait(self) -> None:
        """From now on a statement of this transaction waits for a lock for one second at most."""

    def is_lock_timeout(self, error: Error) -> bool:
        return False

    def is_missing_table(self, error: Error) -> bool:
        """Whether a table or column does not exist: `migrate` has not run yet."""
        raise NotImplementedError
