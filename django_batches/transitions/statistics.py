"""The small rows that the admin draws from: jobs ended per stretch of time, failures per exception and place.

Written in the transaction of what they count, so that a page of a batch of a million jobs need not look at them.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from .. import database
from ..states import JOB_ENDED, JobStatus
from .next_status import Change


def aggregate(won: Iterable[Change], now: datetime) -> None:
    """Counts what has ended by these changes."""
    ended = [change for change in won if change.has_ended and change.outcome.is_job_of_batch]
    counts: dict[UUID, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    groups: dict[tuple[UUID, str], list[Any]] = {}
    for change in ended:
        outcome = change.outcome
        counts[outcome.batch_id][change.status] += 1
        if change.status == JobStatus.FAILED:
            sample = change.reason or outcome.error
            group = groups.setdefault((outcome.batch_id, outcome.fingerprint), [outcome.error_type, sample, 0])
            group[2] += 1
    count_ended({key: tuple(count[status] for status in JOB_ENDED) for key, count in counts.items()}, now)
    count_failures([[batch, fingerprint, *group] for (batch, fingerprint), group in groups.items()])


def count_ended(counts: dict[UUID, tuple[int, ...]], now: datetime) -> None:
    """Adds to the time bucket of `now`: per batch how many succeeded, failed and were cancelled."""
    if not counts:
        return
    seconds = 10
    start = now.replace(second=now.second - now.second % seconds, microsecond=0)
    columns = {"batch_id": "uuid", "starts_at": "timestamptz", **{str(status): "int" for status in JOB_ENDED}}
    table, params = database.values(columns, [[key, start, *count] for key, count in sorted(counts.items())])
    database.execute(
        f"INSERT INTO {database.BUCKET} AS b (batch_id, starts_at, succeeded, failed, cancelled)"
        f" SELECT * FROM {table} WHERE true ON CONFLICT (batch_id, starts_at) DO UPDATE SET"
        " succeeded = b.succeeded + excluded.succeeded, failed = b.failed + excluded.failed,"
        " cancelled = b.cancelled + excluded.cancelled",
        params,
    )


def count_failures(groups: list[list[Any]]) -> None:
    """Adds to the failure groups: [batch, fingerprint, error type, sample, count], the count negative after a retry."""
    if not groups:
        return
    columns = {
        "batch_id": "uuid", "fingerprint": "text", "error_type": "text", "sample": "text", "count": "int",
    }  # fmt: skip
    table, params = database.values(columns, sorted(groups, key=lambda group: (group[0], group[1])))
    database.execute(
        f"INSERT INTO {database.FAILURE_GROUP} AS g (batch_id, fingerprint, error_type, sample, count)"
        f" SELECT * FROM {table} WHERE true ON CONFLICT (batch_id, fingerprint) DO UPDATE SET"
        " count = g.count + excluded.count",
        params,
    )
