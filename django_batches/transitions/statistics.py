"""Small rows for the admin: ended jobs per time bucket, and failures per exception and place.

Each transition writes them in its own transaction, so that the page of a batch of a million jobs need not count jobs.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from .. import database
from ..states import JOB_ENDED, JobStatus
from .job_status import Change

BUCKET_SECONDS = 10


class Failures(NamedTuple):
    """By how much a failure group grows; negative in a retry."""

    batch_id: UUID
    fingerprint: str
    error_type: str
    sample: str
    by: int


def aggregate(won: Iterable[Change], now: datetime) -> None:
    """Counts the jobs that these changes have ended."""
    counts: dict[UUID, Counter[str]] = defaultdict(Counter)
    groups: dict[tuple[UUID, str], Failures] = {}
    for change in won:
        outcome = change.outcome
        if not change.has_ended or not outcome.is_job_of_batch:
            continue
        counts[outcome.batch_id][change.status] += 1
        if change.status == JobStatus.FAILED:
            key = outcome.batch_id, outcome.fingerprint
            group = groups.get(key) or Failures(*key, outcome.error_type, change.reason or outcome.error, by=0)
            groups[key] = group._replace(by=group.by + 1)
    count_ended({key: tuple(count[status] for status in JOB_ENDED) for key, count in counts.items()}, now)
    count_failures(list(groups.values()))


def count_ended(counts: dict[UUID, tuple[int, ...]], now: datetime) -> None:
    """Adds to the time bucket of `now`: per batch how many jobs succeeded, failed and were cancelled."""
    if not counts:
        return
    start = now.replace(second=now.second - now.second % BUCKET_SECONDS, microsecond=0)
    columns = {"batch_id": UUID, "starts_at": datetime, "succeeded": int, "failed": int, "cancelled": int}
    table, params = database.values(columns, [(key, start, *count) for key, count in sorted(counts.items())])
    database.execute(
        f"INSERT INTO {database.BUCKET} AS b (batch_id, starts_at, succeeded, failed, cancelled)"
        f" SELECT * FROM {table} WHERE true ON CONFLICT (batch_id, starts_at) DO UPDATE SET"
        " succeeded = b.succeeded + excluded.succeeded, failed = b.failed + excluded.failed,"
        " cancelled = b.cancelled + excluded.cancelled",
        params,
    )


def count_failures(groups: Sequence[Failures]) -> None:
    if not groups:
        return
    table, params = database.values(Failures, sorted(groups))
    database.execute(
        f"INSERT INTO {database.FAILURE_GROUP} AS g (batch_id, fingerprint, error_type, sample, count)"
        f" SELECT * FROM {table} WHERE true ON CONFLICT (batch_id, fingerprint) DO UPDATE SET"
        " count = g.count + excluded.count",
        params,
    )
