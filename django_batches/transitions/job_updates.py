"""Updates rows of jobs in bulk. An outcome changes a row only if it carries the row's current dispatch number."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from .. import database
from ..states import IN_FLIGHT, JOB_ENDED, WAITING_HERE, JobStatus
from ..transport.outcomes import Kind, Outcome
from .batch_status import Tally
from .job_status import Change

LARGEST = 16 << 20
"""A statement with more characters is split. PostgreSQL refuses literals of 512 MiB and messages of 1 GiB, and the
coordinator would repeat such a statement forever."""


class _Success(NamedTuple):
    """The columns that differ between successes, the most frequent changes. With `_Row` they take 1.2 times as long."""

    id: UUID
    dispatch: int
    started_at: datetime | None
    finished_at: datetime | None
    result_text: str | None
    worker: str


class _Row(NamedTuple):
    """The columns that any other change of a job writes."""

    id: UUID
    dispatch: int
    tried: int
    lost: int
    waited_at: datetime | None
    returned: UUID | None
    status: str
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    result_text: str | None
    error_type: str
    error: str
    traceback: str
    fingerprint: str
    worker: str


_SET_SUCCESS = (
    f"status = '{JobStatus.SUCCEEDED}', attempts = attempts + 1, due_at = NULL, error_type = '', error = '',"
    f" traceback = '', fingerprint = '', {', '.join(f'{name} = v_{name}' for name in _Success._fields[2:])}"
)
_SET_LATE_SUCCESS = _SET_SUCCESS.replace("attempts = attempts + 1", "attempts = 1")
_SET = (
    "attempts = attempts + v_tried, losses = losses + v_lost, waited_at = COALESCE(v_waited_at, waited_at),"
    " returned_batch_id = CASE WHEN v_waited_at IS NULL THEN returned_batch_id ELSE v_returned END,"
    f" {', '.join(f'{name} = v_{name}' for name in _Row._fields[6:])}"
)


def write(
    changes: list[Change], tallies: dict[UUID, Tally], now: datetime, statuses: Sequence[JobStatus] = IN_FLIGHT
) -> list[Change]:
    """Writes and counts changes. Skips a row if its status is not in `statuses` or if it has another dispatch number.

    Returns the changes that were written.
    """
    successes = [change for change in changes if change.is_success_of_run]
    others = [change for change in changes if not change.is_success_of_run]
    won = _update(successes, [_success(change, now) for change in successes], _SET_SUCCESS, statuses)
    won += _update(others, [_row(change, now) for change in others], _SET, statuses)
    _count(won, tallies, statuses)
    return won


def write_late_successes(
    outcomes: list[Outcome], won: list[Change], tallies: dict[UUID, Tally], now: datetime
) -> tuple[list[Change], list[tuple[UUID, int, str]]]:
    """Writes the successes of runs that were given up, if their jobs have not ended. The work is done, so it counts.

    For example, a host froze and its job was dispatched again; then the first run reports its success. Returns the
    changes, and (job, dispatch, queue) of the later runs, which must not start any more.
    """
    if len(won) == len(outcomes):
        return [], []
    winners = {change.outcome.execution for change in won}
    # Leave out runs with children: if a run is given up, its children are cancelled, so its work is not done.
    late = {
        outcome.job_id: outcome
        for outcome in outcomes
        if outcome.kind == Kind.SUCCEEDED and not outcome.has_children and outcome.execution not in winners
    }
    rows = database.jobs().filter(pk__in=late).exclude(status__in=JOB_ENDED).only("dispatch", "status", "queue")
    jobs = [job for job in rows if late[job.pk].dispatch <= job.dispatch]
    written = []
    for statuses in (IN_FLIGHT, (*WAITING_HERE, JobStatus.WAITING)):
        # The batches are locked, so these rows have not changed since they were read.
        current = [replace(late[job.pk], dispatch=job.dispatch) for job in jobs if job.status in statuses]
        changes = [Change(outcome, JobStatus.SUCCEEDED, tried=1) for outcome in current]
        changes = _update(changes, [_success(change, now) for change in changes], _SET_LATE_SUCCESS, statuses)
        _count(changes, tallies, statuses)
        written += changes
    return written, [(job.pk, job.dispatch, job.queue) for job in jobs if late[job.pk].dispatch < job.dispatch]


def _success(change: Change, now: datetime) -> _Success:
    outcome = change.outcome
    finished_at = outcome.finished_at or now
    return _Success(*outcome.execution, outcome.started_at, finished_at, outcome.result, outcome.worker)


def _row(change: Change, now: datetime) -> _Row:
    outcome, status = change.outcome, change.status
    return _Row(
        *outcome.execution, change.tried, change.lost, now if status == JobStatus.WAITING else None, outcome.returned,
        status=status.value,
        due_at=now if status == JobStatus.CREATED else change.due_at,  # a claimable job is due now
        started_at=outcome.started_at,
        finished_at=(outcome.finished_at or now) if change.has_ended else None,
        result_text=outcome.result,
        error_type=outcome.error_type,
        error=change.reason or outcome.error,
        traceback=outcome.traceback,
        fingerprint=outcome.fingerprint,
        worker=outcome.worker,
    )  # fmt: skip


def _update(
    changes: list[Change], rows: Sequence[tuple[Any, ...]], assignments: str, statuses: Sequence[JobStatus]
) -> list[Change]:
    """Updates the rows of changes. Returns the changes that were written."""
    if not changes:
        return []
    if len(changes) > 1 and sum(len(value) for row in rows for value in row if type(value) is str) > LARGEST:
        middle = len(changes) // 2
        first = _update(changes[:middle], rows[:middle], assignments, statuses)
        return first + _update(changes[middle:], rows[middle:], assignments, statuses)
    table, params = database.values(type(rows[0]), rows)
    among = ", ".join(f"'{status.value}'" for status in statuses)
    # The bounds help the planner: until a vacuum, the index of rows in flight also has the rows of earlier flights.
    ids = [change.outcome.job_id for change in changes] if statuses is IN_FLIGHT else []
    within, bounds = (" AND id BETWEEN %s AND %s", [min(ids), max(ids)]) if ids else ("", [])
    written = database.execute(
        f"UPDATE {database.JOB} SET {assignments} FROM {table} WHERE id = v_id AND dispatch = v_dispatch"
        f"{within} AND status IN ({among}) RETURNING id, dispatch",
        [*params, *map(database.parameter, bounds)],
    )
    if len(written) == len(changes):
        return changes
    executions = {(database.as_uuid(key), dispatch) for key, dispatch in written}
    return [change for change in changes if change.outcome.execution in executions]


def _count(won: list[Change], tallies: dict[UUID, Tally], statuses: Sequence[JobStatus]) -> None:
    for change in won:
        outcome = change.outcome
        tally = tallies[outcome.batch_id]
        if outcome.is_job_of_batch and statuses is IN_FLIGHT:
            tally.in_flight -= 1
        if outcome.started_at and (tally.started_at is None or outcome.started_at < tally.started_at):
            tally.started_at = outcome.started_at
        if change.has_ended and not outcome.is_job_of_batch:
            tally.open_callbacks -= 1
        elif change.has_ended:
            tally.ended(change.status.value)
            if change.status == JobStatus.FAILED and tally.first_failure is None:
                tally.first_failure = outcome.job_id
