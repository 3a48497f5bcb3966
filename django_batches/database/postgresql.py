"""PostgreSQL: many clients, each with its own clock, and locks that user code may keep for long."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_type_hints
from uuid import UUID

from django.db import Error
from django.db.models.functions import Now

from . import tables
from .dialect import Dialect, Room, Rows, Sql
from .tables import BATCH, JOB, LEASE, execute

if TYPE_CHECKING:
    from ..models import Batch

_LIMIT_IDLE_TIME = "set_config('idle_in_transaction_session_timeout', %s, true)"
"""The session of a lost host would keep the row of the lease locked, and no standby could take over, until the server
notices that its client is gone: by default after two hours."""


class PostgreSQL(Dialect):
    can_write_in_with: ClassVar = True
    skip_locked: ClassVar = " FOR UPDATE SKIP LOCKED"

    def values(self, columns: type[tuple[Any, ...]], rows: Rows) -> Sql:
        fields = _fields(columns)
        arrays = ", ".join(f"%s::{_ARRAYS[kind][0]}[]" for kind in fields.values())
        names = ", ".join(f"v_{name}" for name in fields)
        cells = list(zip(*rows, strict=True)) or [()] * len(fields)
        literals = [
            f"{{{','.join(_ARRAYS[kind][1](column))}}}" for kind, column in zip(fields.values(), cells, strict=True)
        ]
        return f"unnest({arrays}) AS v({names})", literals

    def among(self, keys: str) -> str:
        # Not IN: PostgreSQL may execute its sub-select again and again, so that the LIMIT has no effect.
        return f"= ANY(ARRAY({keys}))"

    def now(self) -> datetime:
        return execute("SELECT clock_timestamp()")[0][0]  # type: ignore[no-any-return]

    def now_sql(self) -> Sql:
        return "clock_timestamp()", []

    def deadline(self, seconds: int) -> Any:
        return Now() + timedelta(seconds=seconds)

    def times_of_new_batch(self, deadline: int | None) -> dict[str, Sql]:
        return {
            "grown_at": ("clock_timestamp()", []),
            "deadline_at": ("clock_timestamp() + %s * interval '1 second'", [deadline]),
        }

    def batch(self, batch_id: UUID) -> "Batch":
        found = _select("WHERE id = %s", [batch_id])
        model = tables.model("Batch")
        if not found:
            raise model.DoesNotExist(f"There is no batch {batch_id}.")
        found[0].metadata = model._meta.get_field("metadata").from_db_value(
            found[0].metadata, None, tables.connection()
        )
        return found[0]

    def lock_batches(self, ids: Iterable[UUID], *, skip_locked: bool) -> "list[Batch]":
        lock = f"FOR UPDATE{' SKIP LOCKED' if skip_locked else ''}"
        return _select(f"WHERE id = ANY(%s) ORDER BY id {lock}", [list(ids)], without=tables.USER_FIELDS)

    def insert(self, table: str, columns: type[tuple[Any, ...]], rows: Rows) -> None:
        wrapper = tables.connection()
        with wrapper.cursor() as cursor:
            if not hasattr(cursor, "copy"):  # psycopg 2
                super().insert(table, columns, rows)
                return
            copy_sql = f"COPY {table} ({', '.join(_fields(columns))}) FROM STDIN"
            # COPY sends rows one by one; many large arguments in one statement would exceed the limit of 1 GB.
            # Django does not wrap `cursor.copy`, so callers would not catch its errors.
            with wrapper.wrap_database_errors, cursor.copy(copy_sql) as copy:
                for row in rows:
                    copy.write_row(row)

    def jobs_to_claim(self, queue: str, rooms: Sequence[Room], limit: int) -> Sql:
        table, params = self.values(Room, rooms)
        # Not a join: the planner knows how many rows it would join, and below 100,000 rows prefers to read the whole
        # table. Not plainly status = 'created': the planner may then read a whole partial index.
        return (
            f"status || '' = 'created' AND id = ANY(ARRAY(SELECT t.id FROM {table} CROSS JOIN LATERAL ("
            f"SELECT c.id, row_number() OVER (ORDER BY c.position) AS turn FROM {JOB} c"
            " WHERE c.batch_id = v_batch_id AND c.queue = %s AND c.status = 'created' AND c.batch_id IS NOT NULL"
            " AND c.position >= v_start ORDER BY c.position LIMIT v_room) t ORDER BY t.turn, v_batch_id LIMIT %s))",
            [*params, queue, limit],
        )

    def touch_lease(self, name: str, token: int, seconds: int) -> datetime | None:
        touched = execute(
            f"UPDATE {LEASE} SET expires_at = clock_timestamp() + %s WHERE name = %s AND token = %s"
            f" RETURNING clock_timestamp(), {_LIMIT_IDLE_TIME}",
            [timedelta(seconds=seconds), name, token, str(seconds * 1000)],
        )
        return touched[0][0] if touched else None

    def limit_idle_time(self, seconds: int) -> None:
        execute(f"SELECT {_LIMIT_IDLE_TIME}", [str(seconds * 1000)])

    def limit_lock_wait(self) -> None:
        execute("SET LOCAL lock_timeout = '1s'")

    def is_lock_timeout(self, error: Error) -> bool:
        return _state(error) == "55P03"

    def is_missing_table(self, error: Error) -> bool:
        return _state(error) in ("42P01", "42703")


def _state(error: Error) -> str | None:
    return getattr(error.__cause__, "sqlstate", None)


def _select(condition: str, params: list[Any], without: Sequence[str] = ()) -> "list[Batch]":
    """Batches by plain SQL, which a queryset would take longer for: the coordinator locks some in each transaction."""
    model = tables.model("Batch")
    names = [field.attname for field in model._meta.concrete_fields if field.name not in without]
    found = execute(f"SELECT {', '.join(names)} FROM {BATCH} {condition}", params)
    return [model.from_db(tables.alias(), names, row) for row in found]


@cache
def _fields(columns: type[tuple[Any, ...]]) -> dict[str, type]:
    """The fields of a named tuple with their types, None aside."""
    return {name: (get_args(hint) or (hint,))[0] for name, hint in get_type_hints(columns).items()}


def _texts(column: Sequence[str | None]) -> list[str]:
    return [
        "NULL"
        if value is None
        else f'"{value}"'
        if value.isalnum()
        else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for value in column
    ]


_ARRAYS: dict[type, tuple[str, Callable[[Sequence[Any]], list[str]]]] = {
    UUID: ("uuid", lambda column: ["NULL" if value is None else value.hex for value in column]),
    int: ("int", lambda column: ["NULL" if value is None else str(value) for value in column]),
    bool: ("boolean", lambda column: ["NULL" if value is None else str(value) for value in column]),
    datetime: ("timestamptz", lambda column: ["NULL" if value is None else f'"{value}"' for value in column]),
    str: ("text", _texts),
}
"""Per Python type the PostgreSQL type, and the elements of an array literal."""
