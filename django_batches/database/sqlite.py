"""The dialect for SQLite, for development and tests. SQLite has one writer at a time and uses the clock of the host."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.db import Error

from .base import Columns, Dialect, Room, Rows, Sql, types_of
from .tables import JOB, connection


class SQLite(Dialect):
    def values(self, columns: Columns, rows: Rows) -> Sql:
        names = enumerate(types_of(columns))
        picks = ", ".join(f"json_extract(value, '$[{index}]') AS v_{name}" for index, name in names)
        text = json.dumps([[self.parameter(value) for value in row] for row in rows])
        return f"(SELECT {picks} FROM json_each(%s)) AS v", [text]

    def parameter(self, value: Any) -> Any:
        if isinstance(value, UUID):
            return value.hex
        if hasattr(value, "isoformat"):
            return str(connection().ops.adapt_datetimefield_value(value))
        return value

    def jobs_to_claim(self, queue: str, rooms: Sequence[Room], limit: int) -> Sql:
        table, params = self.values(Room, rooms)
        # CROSS JOIN makes SQLite read the table of rooms first. Otherwise it would read all jobs first.
        return (
            "status = 'created' AND id IN (SELECT id FROM (SELECT c.id, v_batch_id, v_room,"
            f" row_number() OVER (PARTITION BY v_batch_id ORDER BY c.position) AS turn FROM {table}"
            f" CROSS JOIN {JOB} c WHERE c.id IN (SELECT id FROM {JOB} WHERE batch_id = v_batch_id AND queue = %s"
            " AND status = 'created' AND position >= v_start ORDER BY position LIMIT %s))"
            " WHERE turn <= v_room ORDER BY turn, v_batch_id LIMIT %s)",
            [*params, queue, limit, limit],
        )

    def is_missing_table(self, error: Error) -> bool:
        return str(error).startswith(("no such table", "no such column"))
