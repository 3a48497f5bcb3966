"""Small rows for the admin: ended jobs per time bucket, and failures per exception and place.

Each transition writes them in its own transaction, so that the page of a batch of a million jobs need not count jobs.
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
    """Counts the jobs that these changes have ended."""
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
    """Adds to the time bucket of `now`: per batch how many jobs succeeded, failed and were cancelled."""
    start = now.replace(second=now.second - now.second % BUCKET_SECONDS, microsecond=0)
    keys, sums = {"batch_id": UUID, "starts_at": datetime}, {"succeeded": int, "failed": int, "cancelled": int}
    _add(database.BUCKET, keys, {}, sums, [(key, start, *count) for key, count in counts.items()])


def count_failures(groups: Sequence[tuple[UUID, str, str, str, int]]) -> None:
    """Adds to failure groups: batch, fingerprint, error type, sample and by how much, which a retry makes negative."""
    keys, others = {"batch_id": UUID, "fingerprint": str}, {"error_type": str, "sample": str}
    _add(database.FAILURE_GROUP, keys, others, {"count": int}, groups)


def _add(
    table: str, keys: dict[str, Any], others: dict[str, Any], sums: dict[str, Any], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Inserts rows; adds the columns `sums` to those of an existing row with the same `keys`."""
    if not rows:
        return
    columns = keys | others | sums
    values, params = database.values(columns, sorted(rows))
    database.execute(
        f"INSERT INTO {table} AS t ({', '.join(columns)}) SELECT * FROM {values} WHERE true ON CONFLICT"
        f" ({', '.join(keys)}) DO UPDATE SET {', '.join(f'{name} = t.{name} + excluded.{name}' for name in sums)}",
        params,
    )
