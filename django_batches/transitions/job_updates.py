"""Changes into the rows of jobs, in bulk: only the row that still waits for this very run is changed."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from .. import database
from ..states import IN_FLIGHT, JOB_ENDED, JobStatus
from ..transport.outcomes import Kind, Outcome
from .finishing import Tally
from .next_status import Change

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


LARGEST = 16 << 20
"""Characters of results and tracebacks in one statement: PostgreSQL takes no literal of 512 MiB and no message of
1 GiB, and outcomes that it will not take would come back for ever."""


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


def _size(values: list[list[Any]]) -> int:
    """Characters of all texts."""
    return sum(len(value) for row in values for value in row if type(value) is str)


def _written(
    changes: list[Change],
    columns: dict[str, str],
    values: list[list[Any]],
    assignments: str,
    statuses: Sequence[JobStatus],
) -> list[Change]:
    if len(changes) > 1 and _size(values) > LARGEST:
        middle = len(changes) // 2
        first = _written(changes[:middle], columns, values[:middle], assignments, statuses)
        return first + _written(changes[middle:], columns, values[middle:], assignments, statuses)
    if not changes:
        return []
    # Numbers are cheaper to read than keys, but SQLite returns nothing that is not of the table itself.
    numbered = database.connection().vendor == "postgresql"
    table, params = database.values(columns, values, numbered=numbered)
    among = ", ".join(f"'{status.value}'" for status in statuses)
    # A range for the planner alone: the index of what is in flight has all that was, too, until a vacuum.
    ids = [change.outcome.job_id for change in changes] if statuses is IN_FLIGHT else []
    within, bounds = (" AND id BETWEEN %s AND %s", [min(ids), max(ids)]) if ids else ("", [])
    winners = database.execute(
        f"UPDATE {database.JOB} SET {assignments} FROM {table} WHERE id = v_id AND dispatch = v_dispatch"
        f"{within} AND status IN ({among}) RETURNING {'v_number' if numbered else 'id, dispatch'}",
        [*params, *map(database.parameter, bounds)],
    )
    if len(winners) == len(changes):
        return changes
    if numbered:
        return [changes[number - 1] for (number,) in sorted(winners)]
    executions = {(database.as_uuid(key), dispatch) for key, dispatch in winners}
    return [change for change in changes if change.outcome.execution in executions]


def begin_to_wait(won: list[Change], now: datetime) -> None:
    """What only jobs with children need, kept out of the statement that all jobs pay for."""
    waiting = [change.outcome for change in won if change.status == JobStatus.WAITING]
    if not waiting:
        return
    table, params = database.values(
        {"id": "uuid", "returned": "uuid", "waited_at": "timestamptz"},
        [[outcome.job_id, outcome.returned, now] for outcome in waiting],
    )
    database.execute(
        f"UPDATE {database.JOB} SET waited_at = v_waited_at, returned_batch_id = v_returned"
        f" FROM {table} WHERE id = v_id",
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


def late_successes(
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
    for job in database.jobs().filter(pk__in=late).exclude(status__in=JOB_ENDED).only("dispatch", "status", "queue"):
        outcome = late[job.pk]
        if outcome.dispatch > job.dispatch:
            continue
        change = Change(replace(outcome, dispatch=job.dispatch), JobStatus.SUCCEEDED, tried=1)
        # In this transaction the batch is locked, so nobody else moves the row between the two statements.
        fields = dict(zip(_CHANGE, change.row(now), strict=True))
        database.jobs().filter(pk=job.pk).update(
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
