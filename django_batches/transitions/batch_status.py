"""Moves the counters of batches, and ends batches: their final status, their events and their callbacks.

Each transition that changes jobs fills a `Tally` for each batch that it has locked, and then calls `update_batches`
once in its transaction. This moves all counters in one statement, ends the batches that can end, and schedules
callbacks. Only `_end` sets the status of a batch to `succeeded`, `failed` or `cancelled`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

from django.db.models import F

from .. import database
from ..database import inserting
from ..database.inserting import NewJob
from ..database.uuid7 import uuid7
from ..states import IN_FLIGHT, WAITING_HERE, BatchStatus, Event, JobStatus

_COUNTERS = ("pending", "succeeded", "failed", "cancelled", "in_flight", "open_callbacks")
_FIELDS: dict[str, type] = {
    "status": str, "round": int, "failure_round": int, "attempted_round": int, "first_failure_id": UUID,
    "finished_at": datetime, "cancelled_at": datetime, "gave_up": bool, "reason": str,
}  # fmt: skip
"""The other columns that `update_batches` writes."""


@dataclass
class Tally:
    """The changes that one transaction makes to the counters of a batch that it has locked."""

    batch: "database.Batch"
    pending: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    in_flight: int = 0
    open_callbacks: int = 0
    started_at: datetime | None = None
    first_failure: UUID | None = None
    is_overdue: bool = False

    def ended(self, status: str, count: int = 1) -> None:
        """Counts `count` pending jobs that have ended with `status`."""
        self.pending -= count
        setattr(self, status, getattr(self, status) + count)

    def reopened(self, status: str, count: int = 1) -> None:
        """Counts `count` jobs that had ended with `status` as pending again."""
        self.ended(status, -count)


def update_batches(tallies: Iterable[Tally], now: datetime, *, claims: int = 0) -> list[NewJob]:
    """Moves the counters, ends the batches that can end, and schedules callbacks. Returns the rows of the callbacks.

    Claims up to `claims` of the callbacks that are due at once. The caller must push these after the commit.
    """
    callbacks: list[NewJob] = []
    tallies = list(tallies)
    for tally in tallies:
        batch = tally.batch
        for name in _COUNTERS:
            setattr(batch, name, getattr(batch, name) + getattr(tally, name))
        _give_up_after_failures(tally, now)
        scheduled = [row for event in _events(tally, now) for row in _callbacks(batch, event, now)]
        batch.open_callbacks += len(scheduled)
        tally.open_callbacks += len(scheduled)
        callbacks += scheduled
    if tallies:
        _update(tallies)
    if callbacks:
        _claim(callbacks, claims)
        inserting.jobs(callbacks)
    return callbacks


def schedule_missed_failure_callbacks(batch: "database.Batch", now: datetime) -> None:
    """Schedules the failure callbacks of a locked batch that were registered after its failure event."""
    if batch.failure_round != batch.round:
        return
    scheduled = database.jobs().filter(callback_of=batch, event=Event.FAILURE, round=batch.round)
    positions = set(scheduled.values_list("position", flat=True))
    missed = [row for row in _callbacks(batch, Event.FAILURE, now) if row.position not in positions]
    if missed:
        inserting.jobs(missed)
        database.batches().filter(pk=batch.pk).update(open_callbacks=F("open_callbacks") + len(missed))


def can_end(batch: "database.Batch") -> bool:
    """Whether the batch has no pending job, no job can be added, and no retry is in progress."""
    is_closed = batch.sealed_at is not None or batch.cancelled_at is not None
    return batch.pending == 0 and batch.finished_at is None and is_closed and batch.retry_position is None


def registers(batch: "database.Batch", event: Event) -> bool:
    return f'"event":"{event}"' in batch.registered_callbacks


def _end(batch: "database.Batch", now: datetime) -> None:
    batch.finished_at = now
    if batch.cancelled_at and not batch.gave_up:
        batch.status = BatchStatus.CANCELLED
    else:
        batch.status = BatchStatus.FAILED if batch.failed or batch.cancelled else BatchStatus.SUCCEEDED


def _give_up_after_failures(tally: Tally, now: datetime) -> None:
    """Cancels a batch that exceeds its `max_failures`. The coordinator then cancels its other jobs in chunks."""
    batch = tally.batch
    if tally.failed <= 0 or batch.cancelled_at or batch.max_failures is None or batch.failed <= batch.max_failures:
        return
    if not batch.pending and batch.sealed_at:
        return  # no job is left to cancel, and none can be added
    if batch.retry_position is not None:
        return  # the count still includes old failures of jobs that the retry has not reached yet
    batch.gave_up, batch.cancelled_at = True, now
    batch.reason = f"More than {batch.max_failures} jobs failed (max_failures)."


def _events(tally: Tally, now: datetime) -> list[Event]:
    """Ends the batch if it can end. Returns its new events, and marks each so that it happens once per round."""
    batch = tally.batch
    events = []
    if tally.first_failure and not batch.first_failure_id:
        batch.first_failure_id = tally.first_failure
    if ends := can_end(batch):
        _end(batch, now)
    failed = tally.first_failure is not None or tally.is_overdue or (ends and batch.status == BatchStatus.FAILED)
    if failed and batch.failure_round != batch.round:
        batch.failure_round = batch.round
        events.append(Event.FAILURE)
    if _all_attempted(batch, ends):
        batch.attempted_round = batch.round
        events.append(Event.ATTEMPTED)
    if ends:
        events += [Event.SUCCESS, Event.FINISH] if batch.status == BatchStatus.SUCCEEDED else [Event.FINISH]
    return events


def _all_attempted(batch: "database.Batch", ends: bool) -> bool:
    is_wanted = registers(batch, Event.ATTEMPTED) and batch.attempted_round != batch.round
    if not is_wanted or not batch.sealed_at or batch.retry_position is not None:
        return False
    return ends or not any(
        database.jobs().filter(batch=batch, attempts=0, status__in=statuses).exists()
        for statuses in (WAITING_HERE, IN_FLIGHT)  # two queries, because each has an index
        if statuses is WAITING_HERE or batch.in_flight
    )


def _callbacks(batch: "database.Batch", event: Event, now: datetime) -> list[NewJob]:
    specs = [spec for spec in json.loads(batch.registered_callbacks) if spec["event"] == event]
    return [_callback(batch, spec, position, now) for position, spec in enumerate(specs)]


def _callback(batch: "database.Batch", spec: dict[str, Any], position: int, now: datetime) -> NewJob:
    due_at, run_after = None, spec["run_after"]  # seconds after the event, or an ISO time
    if run_after:
        due_at = datetime.fromisoformat(run_after) if isinstance(run_after, str) else now + timedelta(seconds=run_after)
    status = JobStatus.SCHEDULED if due_at else JobStatus.CREATED
    return NewJob(
        uuid7(), spec["func"], spec["arguments"], spec["queue"], spec["timeout"], spec["max_attempts"], spec["backoff"],
        spec["no_retry"], now, due_at, callback_of_id=batch.pk, event=spec["event"], round=batch.round,
        status=status.value, position=position,
    )  # fmt: skip


def _claim(callbacks: list[NewJob], claims: int) -> None:
    due = [index for index, row in enumerate(callbacks) if row.due_at is None]
    for index in due[:claims]:
        callbacks[index] = callbacks[index]._replace(status=JobStatus.QUEUED.value, dispatch=1)


def _update(tallies: list[Tally]) -> None:
    columns = {"id": UUID, "started_at": datetime, **dict.fromkeys(_COUNTERS, int), **_FIELDS}
    moves, fields = attrgetter(*_COUNTERS), attrgetter(*_FIELDS)
    rows = [(tally.batch.pk, tally.started_at, *moves(tally), *fields(tally.batch)) for tally in tallies]
    table, params = database.values(columns, rows)
    assignments = [f"{name} = {name} + v_{name}" for name in _COUNTERS] + [f"{name} = v_{name}" for name in _FIELDS]
    database.execute(
        f"UPDATE {database.BATCH} SET started_at = COALESCE(started_at, v_started_at), {', '.join(assignments)}"
        f" FROM {table} WHERE id = v_id",
        params,
    )
