"""Outcomes into rows: what became of each run, in bulk, each counted once.

Group commit: many outcomes in one transaction, whatever their number in five statements (the lease, the locks, the
rows, the counters, the time buckets). One transaction per job would be limited by the commits and by the lock of the
batch row (Laravel #39722).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import DataError, IntegrityError
from django.utils import timezone

from ..outcomes import Kind, Outcome
from ..states import IN_FLIGHT, JOB_ENDED, JobStatus
from . import counting, dispatching, repairing, rows
from .aggregating import aggregate
from .counting import Tally
from .deciding import Change, decide
from .dispatching import Claimed
from .due import Place

if TYPE_CHECKING:
    from ..models import Batch

logger = logging.getLogger("django_batches")

_CAME_TO_NOTHING = set(Kind) - {Kind.SUCCEEDED, Kind.HELD}

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
_SET = (
    "status = v_status, attempts = attempts + v_tried, losses = losses + v_lost, due_at = v_due_at,"
    " started_at = v_started_at, finished_at = v_finished_at, result_text = v_result_text,"
    " error_type = v_error_type, error = v_error, traceback = v_traceback, fingerprint = v_fingerprint,"
    " worker = v_worker"
)

_SUCCESS = {
    "id": "uuid",
    "dispatch": "int",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    "result_text": "text",
    "worker": "text",
}
"""What differs among the successes of runs, which nearly all changes are: the statement is shorter by half."""
_SET_SUCCESS = (
    f"status = '{JobStatus.SUCCEEDED}', attempts = attempts + 1, due_at = NULL,"
    " started_at = v_started_at, finished_at = v_finished_at, result_text = v_result_text,"
    " error_type = '', error = '', traceback = '', fingerprint = '', worker = v_worker"
)


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
    """How many callbacks this scheduled or put back."""
    claimed: list[Claimed] = field(default_factory=list)
    """The callbacks that were claimed at once, to be pushed after the commit."""
    has_given_up: bool = False
    """A batch has more failures than it allows: the rest of its jobs must not start."""
    given_up: list[UUID] = field(default_factory=list)
    """Jobs one run of which has come to nothing: nobody waits for the children that it may have opened."""
    is_for_parents: bool = False
    """A job waits for children, or the child of one may have ended: its parent may have to be told."""
    superseded: list[tuple[UUID, int, str]] = field(default_factory=list)
    """(job, dispatch, queue) of runs that must not start any more, because an earlier one came back with a success."""
    put_back: list[Place] = field(default_factory=list)
    """Where jobs wait to be claimed again."""

    def joined(self, other: "Recorded") -> "Recorded":
        return Recorded(
            self.done + other.done,
            self.postponed + other.postponed,
            self.failures + other.failures,
            self.callbacks + other.callbacks,
            self.claimed + other.claimed,
            self.has_given_up or other.has_given_up,
            self.given_up + other.given_up,
            self.is_for_parents or other.is_for_parents,
            self.superseded + other.superseded,
            self.put_back + other.put_back,
        )


def record(outcomes: Sequence[Outcome], fence: Callable[[], datetime] = timezone.now, *, claims: int = 0) -> Recorded:
    """Applies outcomes in one transaction; where the database refuses one, that job alone is failed.

    `fence` is called first in each transaction: it proves that the caller still keeps the books, and gives the time.
    Up to `claims` of the callbacks that this schedules are claimed too: somebody waits for them, and another
    transaction would be another wait for the disk. The caller has to push them.
    """
    try:
        return _apply(outcomes, fence, claims)
    except _REFUSALS as error:
        # Halved until the culprit is alone: it would come back with every chunk and stop the books of all batches.
        if len(outcomes) > 1:
            middle = len(outcomes) // 2
            first = record(outcomes[:middle], fence, claims=claims)
            return first.joined(record(outcomes[middle:], fence, claims=claims))
        return _record_refused(outcomes[0], error, fence)


def _record_refused(outcome: Outcome, error: Exception, fence: Callable[[], datetime]) -> Recorded:
    """Fails the job of an outcome that the database would not take, so that the books of the others go on."""
    if outcome.kind != Kind.REFUSED:
        # Counters that differ from their rows are no fault of the job.
        if isinstance(error, IntegrityError) and repairing.repair_counters(outcome.batch_id, skip_locked=True):
            return record([outcome], fence)
        return record([outcome.refused(error)], fence)
    repairing.repair_counters(outcome.batch_id, skip_locked=True)
    try:
        return _apply([outcome], fence)
    except _REFUSALS as again:
        logger.error("The outcome of job %s is put aside, it cannot be written: %s (%s)", outcome.job_id, error, again)
        return Recorded([outcome])


def _apply(outcomes: Sequence[Outcome], fence: Callable[[], datetime], claims: int = 0) -> Recorded:
    with rows.atomic():
        now = fence()
        batches = rows.lock_batches({outcome.batch_id for outcome in outcomes}, skip_locked=True)
        ready, postponed, orphans = _sort(outcomes, batches)
        tallies = {key: Tally(batch) for key, batch in batches.items()}
        changes = decide(ready, batches, now)
        won = write(changes, tallies, now)
        _begin_to_wait(won, now)
        late = _late_successes(ready, won, tallies, now)
        won += [change for change, _ in late]
        aggregate(won, now)
        touched = [tallies[key] for key in {change.outcome.batch_id for change in won}]
        callbacks = counting.write(touched, now, claims=claims)
        claimed = dispatching.claimed_as_written(callbacks)
    failures = [change for change in won if change.status == JobStatus.FAILED and not change.outcome.was_logged]
    superseded = [(c.outcome.job_id, c.outcome.dispatch, queue) for c, queue in late if queue]
    gave_up = any(batch.cancelled_at == now for batch in batches.values())
    given_up = [change.outcome.job_id for change in won if change.outcome.kind in _CAME_TO_NOTHING]
    given_up += [change.outcome.job_id for change, _ in late]
    is_for_parents = any(change.status == JobStatus.WAITING for change in won) or any(
        batch.is_awaited and batch.finished_at and not batch.open_callbacks for batch in batches.values()
    )
    again = [change for change in won if change.status == JobStatus.CREATED]
    put_back = [(change.outcome.batch_id, *change.place) for change in again if change.outcome.is_job_of_batch]
    return Recorded(
        ready + orphans,
        postponed,
        failures,
        len(callbacks) + len(again) - len(put_back),
        claimed,
        gave_up,
        given_up,
        is_for_parents,
        superseded,
        put_back,
    )


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


def write(
    changes: list[Change], tallies: dict[UUID, Tally], now: datetime, statuses: Sequence[JobStatus] = IN_FLIGHT
) -> list[Change]:
    """Writes the rows that still are in one of `statuses` with the outcome's own dispatch; the changes that won."""
    successes = [change for change in changes if change.is_success_of_run]
    others = [change for change in changes if not change.is_success_of_run]
    won = _written(successes, _SUCCESS, [change.success_row() for change in successes], _SET_SUCCESS, statuses)
    won += _written(others, _CHANGE, [change.row(now) for change in others], _SET, statuses)
    for change in won:
        tally = tallies[change.outcome.batch_id]
        if change.outcome.is_job_of_batch and statuses is IN_FLIGHT:
            tally.in_flight -= 1
        _count(change, tally)
    return won


def _written(
    changes: list[Change],
    columns: dict[str, str],
    values: list[list[Any]],
    assignments: str,
    statuses: Sequence[JobStatus],
) -> list[Change]:
    if not changes:
        return []
    # Numbers are cheaper to read than keys, but SQLite returns nothing that is not of the table itself.
    numbered = rows.connection().vendor == "postgresql"
    table, params = rows.values(columns, values, numbered=numbered)
    among = ", ".join(f"'{status.value}'" for status in statuses)
    # A range for the planner alone: the index of what is in flight has all that was, too, until a vacuum.
    ids = [change.outcome.job_id for change in changes] if statuses is IN_FLIGHT else []
    within, bounds = (" AND id BETWEEN %s AND %s", [min(ids), max(ids)]) if ids else ("", [])
    winners = rows.execute(
        f"UPDATE {rows.JOB} SET {assignments} FROM {table} WHERE id = v_id AND dispatch = v_dispatch"
        f"{within} AND status IN ({among}) RETURNING {'v_number' if numbered else 'id, dispatch'}",
        [*params, *map(rows.parameter, bounds)],
    )
    if len(winners) == len(changes):
        return changes
    if numbered:
        return [changes[number - 1] for (number,) in sorted(winners)]
    executions = {(rows.as_uuid(key), dispatch) for key, dispatch in winners}
    return [change for change in changes if change.outcome.execution in executions]


def _begin_to_wait(won: list[Change], now: datetime) -> None:
    """What only jobs with children need, kept out of the statement that all jobs pay for."""
    waiting = [change.outcome for change in won if change.status == JobStatus.WAITING]
    if not waiting:
        return
    table, params = rows.values(
        {"id": "uuid", "returned": "uuid", "waited_at": "timestamptz"},
        [[outcome.job_id, outcome.returned, now] for outcome in waiting],
    )
    rows.execute(
        f"UPDATE {rows.JOB} SET waited_at = v_waited_at, returned_batch_id = v_returned FROM {table} WHERE id = v_id",
        params,
    )


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
    if len(won) == len(outcomes):
        return []
    winners = {change.outcome.execution for change in won}
    # Not with children: those of a run that was given up have been cancelled, so its work is not done.
    late = {
        o.job_id: o for o in outcomes if o.kind == Kind.SUCCEEDED and o.execution not in winners and not o.has_children
    }
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
