"""Checks every 50 ms that the counters agree with the rows; one statement reads both, in one snapshot."""

import threading
import time
from typing import Any

import psycopg

from .servers import PostgresServer

INTERVAL = 0.05

SAMPLE = """
SELECT b.id, b.description, b.round, b.total, b.pending, b.succeeded, b.failed, b.cancelled, b.in_flight,
  b.open_callbacks, b.concurrency, b.finished_at IS NOT NULL, b.retry_position IS NOT NULL,
  j.total, j.succeeded, j.failed, j.cancelled, j.in_flight, c.open
FROM django_batches_batch b
CROSS JOIN LATERAL (SELECT COUNT(*) AS total,
  COUNT(*) FILTER (WHERE status = 'succeeded') AS succeeded, COUNT(*) FILTER (WHERE status = 'failed') AS failed,
  COUNT(*) FILTER (WHERE status = 'cancelled') AS cancelled,
  COUNT(*) FILTER (WHERE status IN ('queued', 'running')) AS in_flight
  FROM django_batches_batchjob WHERE batch_id = b.id) j
CROSS JOIN LATERAL (SELECT COUNT(*) AS open FROM django_batches_batchjob
  WHERE callback_of_id = b.id AND status NOT IN ('succeeded', 'failed', 'cancelled')) c
WHERE {which}
"""
LIVING = "b.finished_at IS NULL OR b.open_callbacks > 0 OR b.finished_at > clock_timestamp() - interval '3 s'"


class Sampler(threading.Thread):
    """Samples until `stop()`; waits while the database is unreachable."""

    def __init__(self, postgres: PostgresServer) -> None:
        super().__init__(daemon=True)
        self._postgres = postgres
        self._over = threading.Event()
        self._last: dict[Any, tuple[int, int]] = {}
        self.samples = 0
        self.violations: list[str] = []

    def run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        while not self._over.wait(INTERVAL):
            try:
                connection = connection or self._postgres.connect()
                self.sample(connection)
            except psycopg.Error:
                connection = None
        if connection:
            connection.close()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def sample(self, connection: psycopg.Connection[Any], which: str = LIVING) -> None:
        found = connection.execute(SAMPLE.format(which=which)).fetchall()
        self.samples += 1
        for row in found:
            for wrong in self._judge(row):
                self.violations.append(f"{time.time():.3f} batch {row[0].hex} ({row[1]}): {wrong}")

    def _judge(self, row: Any) -> list[str]:
        (key, _, round_, total, pending, succeeded, failed, cancelled, in_flight, open_callbacks, concurrency, ended,
         is_retrying, *counted) = row  # fmt: skip
        wrong = []
        if total != pending + succeeded + failed + cancelled or min(row[3:10]) < 0:
            wrong.append(f"its counters do not add up: {row[3:10]}")
        if [total, succeeded, failed, cancelled, in_flight, open_callbacks] != counted:
            wrong.append(f"its counters {row[3:10]} differ from its rows {counted}")
        if ended and pending:
            wrong.append(f"it has ended with {pending} jobs pending")
        if concurrency and in_flight > concurrency:
            wrong.append(f"{in_flight} jobs in flight, {concurrency} allowed")
        done = total - pending
        if is_retrying:
            return wrong  # a retry resets its jobs in chunks
        if (round_, done) < self._last.get(key, (0, 0)):
            wrong.append(f"its progress fell from {self._last[key]} to {(round_, done)}")
        self._last[key] = (round_, done)
        return wrong
