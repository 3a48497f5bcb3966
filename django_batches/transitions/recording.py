"""Outcomes into rows: what became of each run, in bulk, each counted once.

Group commit: many outcomes in one transaction, whatever their number in five statements (the lease, the locks, the
rows, the counters, the time buckets). One transaction per job would be limited by the commits and by the lock of the
batch row (Laravel #39722).
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import DataError, IntegrityError
from django.utils import timezone

from ..outcomes import Kind, Outcome
from ..states import IN_FLIGHT, JOB_ENDED, JobStatus
from . import counting, repairing, rows
from .counting import Tally

if TYPE_CHECKING:
    from ..models import Batch, BatchJob

logger = logging.getLogger("django_batches")

MAX_LOSSES = 3
"""Runs whose worker was killed or lost, after which a job is failed as a poison pill."""

DEPLOY_PAUSES = [timedelta(seconds=30), timedelta(minutes=5), timedelta(minutes=5)]
"""Before a job whose function a worker does not have is tried again: a rolling deploy takes its time."""

_ATTEMPT_FAILED = {Kind.FAILED, Kind.KILLED, Kind.TIMEOUT, Kind.RETRY}
_GIVEN_BACK = {Kind.HELD, Kind.VANISHED, Kind.INTERRUPTED, Kind.MISSING}

_REFUSALS = (DataError, IntegrityError, ValueError, OverflowError)
"""What the database or its driver says to a value that it will not take."""

_CHANGE = {
    "id": "uuid",
    "dispatch": "int",
    "status": "text",
    "tried": "int",
    "lost": "int",
    "due_at": "timestamptz",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    "result_text": "text",
    "error_type": "text",
    "error": "text",
    "traceback": "text",
    "fingerprint": "text",
    "worker": "text",
}


@dataclass(frozen=True)
class Change:
    """What an outcome makes of its row."""

    outcome: Outcome
    status: JobStatus
    tried: int = 0
    lost: int = 0
    due_at: datetime | None = None
    reason: str = ""

    @property
    def has_ended(self) -> bool:
        return self.status in JOB_ENDED

    def row(self, now: datetime) -> list[Any]:
        outcome = self.outcome
        return [
            outcome.job_id, outcome.dispatch, self.status.value, self.tried, self.lost, self.due_at,
            outcome.started_at, (outcome.finished_at or now) if self.has_ended else None, outcome.result,
            outcome.error_type, self.reason or outcome.error, outcome.traceback, outcome.fingerprint, outcome.worker,
        ]  # fmt: skip


@dataclass
class Recorded:
    """What `record` made of the outcomes it was given."""

    done: list[Outcome]
    """Applied, superseded, doubled or about a row that is gone: never needed again."""
    postponed: list[Outcome] = field(default_factory=list)
    """Of batches that somebody holds locked: for the next round."""
    failures: list[Change] = field(default_factory=list)
    """Jobs that failed for good without a worker that could have logged it."""
    callbacks: int = 0
    """How many callbacks this scheduled."""
    superseded: list[tuple[UUID, int, str]] = field(default_factory=list)
    """(job, dispatch, queue) of runs that must not start any more, because an earlier one came back with a success."""


def record(outcomes: Sequence[Outcome], fence: Callable[[], datetime] = timezone.now) -> Recorded:
    """Applies outcomes in one transaction; where the database refuses one, that job alone is failed.

    `fence` is called first in each transaction: it proves that the caller still keeps the books, and gives the time.
    """
    try:
        return _apply(outcomes, fence)
    except _REFUSALS as error:
        # Halved until the culprit is alone: it would come back with every chunk and stop the books of all batches.
        if len(outcomes) > 1:
            middle = len(outcomes) // 2
            halves = [record(half, fence) for half in (outcomes[:middle], outcomes[middle:])]
            return Recorded(
                *(left + right for left, right in zip(*(vars(half).values() for half in halves), strict=True))
            )
        return _record_refused(outcomes[0], error, fence)


def _record_refused(outcome: Outcome, error: Exception, fence: Callable[[], datetime]) -> Recorded:
    """Fails the job of an outcome that the database would not take, so that the books of the others go on."""
    if outcome.kind != Kind.REFUSED:
        return record([outcome.refused(error)], fence)
    repairing.repair_counters(outcome.batch_id, skip_locked=True)
    try:
        return _apply([outcome], fence)
    except _REFUSALS as again:
        logger.error("The outcome of job %s is put aside, it cannot be written: %s (%s)", outcome.job_id, error, again)
        return Recorded([outcome])


def _apply(outcomes: Sequence[Outcome], fence: Callable[[], datetime]) -> Recorded:
    with rows.atomic():
        now = fence()
        batches = rows.lock_batches({outcome.batch_id for outcome in outcomes}, skip_locked=True)
        ready, postponed, orphans = _sort(outcomes, batches)
        tallies = {key: Tally(batch) for key, batch in batches.items()}
        changes = _decide(ready, batches, now)
        won = _write(changes, tallies, now)
        late = _late_successes(ready, won, tallies, now)
        won += [change for change, _ in late]
        _aggregate(won, now)
        callbacks = counting.write([tallies[key] for key in {change.outcome.batch_id for change in won}], now)
    failures = [change for change in won if change.status == JobStatus.FAILED and not change.outcome.was_logged]
    superseded = [(c.outcome.job_id, c.outcome.dispatch, queue) for c, queue in late if queue]
    return Recorded(ready + orphans, postponed, failures, callbacks, superseded)


def _sort(
    outcomes: Sequence[Outcome], batches: "dict[UUID, Batch]"
) -> tuple[list[Outcome], list[Outcome], list[Outcome]]:
    ready = [outcome for outcome in outcomes if outcome.batch_id in batches]
    missing = {outcome.batch_id for outcome in outcomes} - set(batches)
    if not missing:
        return ready, [], []
    existing = set(rows.batches().filter(pk__in=missing).values_list("pk", flat=True))
    return (
        ready,
        [outcome for outcome in outcomes if outcome.batch_id in existing],
        [outcome for outcome in outcomes if outcome.batch_id in missing - existing],
    )


def _decide(outcomes: Iterable[Outcome], batches: "dict[UUID, Batch]", now: datetime) -> list[Change]:
    """One change per (job, dispatch): the first outcome told wins among equals, a success over all others."""
    first: dict[tuple[UUID, int], Outcome] = {}
    for outcome in outcomes:
        known = first.get(outcome.execution)
        if known is None or (outcome.kind == Kind.SUCCEEDED and known.kind != Kind.SUCCEEDED):
            first[outcome.execution] = outcome
    simple = (Kind.SUCCEEDED, Kind.HELD)
    asked = [outcome.job_id for outcome in first.values() if outcome.kind not in simple]
    found = {job.pk: job for job in rows.jobs().filter(pk__in=asked).defer("arguments", "traceback")} if asked else {}
    changes = []
    for outcome in first.values():
        batch = batches[outcome.batch_id]
        if outcome.kind == Kind.SUCCEEDED:
            changes.append(Change(outcome, JobStatus.SUCCEEDED, tried=1))
        elif outcome.kind == Kind.HELD:
            changes.append(Change(outcome, _back(batch, outcome)))
        elif job := found.get(outcome.job_id):
            changes.append(_unfinished(outcome, job, batch, now))
    return changes


def _unfinished(outcome: Outcome, job: "BatchJob", batch: "Batch", now: datetime) -> Change:
    """The change of an outcome that is no success: another run, or failed for good."""
    lost = int(outcome.kind in (Kind.KILLED, Kind.INTERRUPTED, Kind.MISSING))
    tried = int(outcome.kind not in _GIVEN_BACK)
    if job.losses + lost >= MAX_LOSSES:
        what = (
            "It could not be imported" if outcome.kind == Kind.MISSING else "Its worker was killed or lost while it ran"
        )
        reason = f"{what}, {MAX_LOSSES} losses in all. {outcome.error}".strip()
        return Change(outcome, JobStatus.FAILED, tried, lost, reason=reason)
    if outcome.kind == Kind.CANCELLED:
        return Change(outcome, JobStatus.CANCELLED, 0, 0)
    if outcome.kind == Kind.MISSING and not batch.cancelled_at:
        return Change(outcome, JobStatus.SCHEDULED, 0, lost, due_at=now + DEPLOY_PAUSES[job.losses])
    if outcome.kind in _GIVEN_BACK:
        return Change(outcome, _back(batch, outcome), tried, lost)
    limit = job.max_attempts if outcome.retry_max is None else outcome.retry_max + 1
    final = outcome.kind not in _ATTEMPT_FAILED or outcome.is_final or job.attempts + tried >= limit
    if final or (batch.cancelled_at and outcome.is_job_of_batch):
        return Change(outcome, JobStatus.FAILED, tried, lost)
    delay = outcome.retry_after if outcome.retry_after is not None else backoff_delay(job.backoff, job.attempts + tried)
    if delay <= 0:
        return Change(outcome, JobStatus.CREATED, tried, lost)
    return Change(outcome, JobStatus.SCHEDULED, tried, lost, due_at=now + timedelta(seconds=delay))


def backoff_delay(backoff: str, attempt: int) -> float:
    """Seconds between attempt number `attempt`, which failed, and the next one."""
    spec = json.loads(backoff)
    if isinstance(spec, list):
        return float(spec[min(attempt, len(spec)) - 1]) if spec else 0.0
    return float(spec)


def _back(batch: "Batch", outcome: Outcome) -> JobStatus:
    """Where a job goes that was taken from RQ without having run."""
    return JobStatus.CANCELLED if batch.cancelled_at and outcome.is_job_of_batch else JobStatus.CREATED


def _write(changes: list[Change], tallies: dict[UUID, Tally], now: datetime) -> list[Change]:
    """Writes the rows that are still in flight with the outcome's own dispatch; returns the changes that won."""
    if not changes:
        return []
    table, params = rows.values(_CHANGE, [change.row(now) for change in changes])
    winners = rows.execute(
        f"UPDATE {rows.JOB} SET status = v_status, attempts = attempts + v_tried, losses = losses + v_lost,"
        " due_at = v_due_at, started_at = v_started_at, finished_at = v_finished_at, result_text = v_result_text,"
        " error_type = v_error_type, error = v_error, traceback = v_traceback, fingerprint = v_fingerprint,"
        " worker = v_worker"
        f" FROM {table} WHERE id = v_id AND dispatch = v_dispatch AND status IN ('queued', 'running')"
        " RETURNING id, dispatch",
        params,
    )
    executions = {(rows.as_uuid(key), dispatch) for key, dispatch in winners}
    won = [change for change in changes if change.outcome.execution in executions]
    for change in won:
        tally = tallies[change.outcome.batch_id]
        if change.outcome.is_job_of_batch:
            tally.in_flight -= 1
        _count(change, tally)
    return won


def _count(change: Change, tally: Tally) -> None:
    started = change.outcome.started_at
    if started and (tally.started_at is None or started < tally.started_at):
        tally.started_at = started
    if not change.has_ended:
        return
    if not change.outcome.is_job_of_batch:
        tally.open_callbacks -= 1
        return
    tally.ended(change.status.value)
    if change.status == JobStatus.FAILED and tally.first_failure is None:
        tally.first_failure = change.outcome.job_id


def _late_successes(
    outcomes: list[Outcome], won: list[Change], tallies: dict[UUID, Tally], now: datetime
) -> list[tuple[Change, str]]:
    """Successes of an older dispatch, whose row was given up and has not ended: the work is done, so it counts.

    The host was frozen or cut off, its job dispatched again, and then it came back with a result.
    """
    winners = {change.outcome.execution for change in won}
    late = {o.job_id: o for o in outcomes if o.kind == Kind.SUCCEEDED and o.execution not in winners}
    if not late:
        return []
    changes = []
    for job in rows.jobs().filter(pk__in=late).exclude(status__in=JOB_ENDED).only("dispatch", "status", "queue"):
        outcome = late[job.pk]
        if outcome.dispatch > job.dispatch:
            continue
        change = Change(replace(outcome, dispatch=job.dispatch), JobStatus.SUCCEEDED, tried=1)
        # In this transaction the batch is locked, so nobody else moves the row between the two statements.
        fields = dict(zip(_CHANGE, change.row(now), strict=True))
        rows.jobs().filter(pk=job.pk).update(
            status=JobStatus.SUCCEEDED,
            attempts=1,
            due_at=None,
            **{k: fields[k] for k in ("started_at", "finished_at", "result_text", "error_type", "error", "traceback")},
            fingerprint="",
            worker=outcome.worker,
        )
        tally = tallies[outcome.batch_id]
        if outcome.is_job_of_batch and job.status in IN_FLIGHT:
            tally.in_flight -= 1
        _count(change, tally)
        changes.append((change, job.queue if outcome.dispatch < job.dispatch else ""))
    return changes


def _aggregate(won: list[Change], now: datetime) -> None:
    """The small rows that the admin draws from: ended per stretch of time, failures per exception and place."""
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
    table, params = rows.values(columns, [[key, start, *count] for key, count in sorted(counts.items())])
    rows.execute(
        f"INSERT INTO {rows.BUCKET} AS b (batch_id, starts_at, succeeded, failed, cancelled)"
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
    table, params = rows.values(columns, sorted(groups, key=lambda group: (group[0], group[1])))
    rows.execute(
        f"INSERT INTO {rows.FAILURE_GROUP} AS g (batch_id, fingerprint, error_type, sample, count)"
        f" SELECT * FROM {table} WHERE true ON CONFLICT (batch_id, fingerprint) DO UPDATE SET"
        " count = g.count + excluded.count",
        params,
    )
