"""Keeps statistics for the admin: how many jobs ended per time bucket, and how many failed per exception and place.

Each transition updates them in its own transaction, so the admin need not count the jobs of a batch of a million.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from .. import database
from ..states import JOB_ENDED, JobStatus
from .job_status import Change

BUCKET_SECONDS = 10


def aggregate(won: Iterable[Change], now: datetime) -> None:
    """Adds the jobs that ended by these changes to the statistics."""
    ended: dict[UUID, Counter[str]] = defaultdict(Counter)
    failed: Counter[tuple[UUID, str]] = Counter()
    samples: dict[tuple[UUID, str], tuple[str, str]] = {}
    for change in won:
        outcome = change.outcome
        if not change.has_ended or not outcome.is_job_of_batch:
            continue
        ended[outcome.batch_id][change.status] += 1
        if change.status == JobStatus.FAILED:
            group = outcome.batch_id, outcome.fingerprint
            failed[group] += 1
            samples.setdefault(group, (outcome.error_type, change.reason or outcome.error))
    count_ended({key: tuple(count[status] for status in JOB_ENDED) for key, count in ended.items()}, now)
    count_failures([(*group, *samples[group], count) for group, count in failed.items()])


def count_ended(counts: dict[UUID, tuple[int, ...]], now: datetime) -> None:
    """Adds to the time bucket of `now`. `counts` has, per batch, how many jobs succeeded, failed and were cancelled."""
    start = now.replace(second=now.second - now.second % BUCKET_SECONDS, microsecond=0)
    keys, sums = {"batch_id": UUID, "starts_at": datetime}, {"succeeded": int, "failed": int, "cancelled": int}
    _add(database.BUCKET, keys, {}, sums, [(key, start, *count) for key, count in counts.items()])


def count_failures(groups: Sequence[tuple[UUID, str, str, str, int]]) -> None:
    """Adds to failure groups: (batch, fingerprint, error type, sample, count). The count of a retry is negative."""
    keys, others = {"batch_id": UUID, "fingerprint": str}, {"error_type": str, "sample": str}
    _add(database.FAILURE_GROUP, keys, others, {"count": int}, groups)


def _add(
    table: str, keys: dict[str, Any], others: dict[str, Any], sums: dict[str, Any], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Inserts rows. If a row with the same `keys` exists, adds to its columns `sums` instead."""
    if not rows:
        return
    columns = keys | others | sums
    values, params = database.values(columns, sorted(rows))
    database.execute(
        f"INSERT INTO {table} AS t ({', '.join(columns)}) SELECT * FROM {values} WHERE true ON CONFLICT"
        f" ({', '.join(keys)}) DO UPDATE SET {', '.join(f'{name} = t.{name} + excluded.{name}' for name in sums)}",
        params,
    )
