"""The counters of batches, and what follows from them: the verdict and the events.

Everything that changes job rows ends here, once per transaction: a `Tally` per locked batch says by how much, `write`
moves all counters in one statement, ends the batches that have nothing pending and schedules their callbacks.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models import F

from .. import database
from ..database import inserting
from ..database.uuid7 import uuid7
from ..states import IN_FLIGHT, WAITING_HERE, BatchStatus, Event, JobStatus

if TYPE_CHECKING:
    from ..models import Batch

_COUNTERS = ("pending", "succeeded", "failed", "cancelled", "in_flight", "open_callbacks")

_CHANGE = {
    "id": "uuid",
    **dict.fromkeys(_COUNTERS, "int"),
    "status": "text",
    "round": "int",
    "failure_round": "int",
    "attempted_round": "int",
    "first_failure": "uuid",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    "cancelled_at": "timestamptz",
    "gave_up": "boolean",
    "reason": "text",
}


@dataclass
class Tally:
    """What one transaction changes about one batch, which the caller has locked."""

    batch: "Batch"
    pending: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    in_flight: int = 0
    open_callbacks: int = 0
    started_at: datetime | None = None
    first_failure: UUID | None = None
    """A job that failed for good now."""
    is_overdue: bool = False
    """It has missed its deadline now."""

    def ended(self, status: str, count: int = 1) -> None:
        """`count` jobs that were pending have ended with `status`."""
        self.pending -= count
        setattr(self, status, getattr(self, status) + count)

    def reopened(self, status: str, count: int = 1) -> None:
        """`count` jobs that had ended with `status` are pending again."""
        self.ended(status, -count)


def write(tallies: Iterable[Tally], now: datetime, *, claims: int = 0) -> list[list[Any]]:
    """Moves the counters, ends what can end, schedules the callbacks of what happened; returns their rows.

    Up to `claims` of these that are due are claimed as they are written, for a caller that pushes them.
    """
    callbacks: list[list[object]] = []
    changes: list[list[object]] = []
    for tally in tallies:
        batch = tally.batch
        for name in _COUNTERS:
            setattr(batch, name, getattr(batch, name) + getattr(tally, name))
        if tally.failed > 0 and not batch.cancelled_at and _has_failed_too_often(batch):
            # The others are cancelled in chunks, by whoever keeps the books.
            batch.gave_up = True
            batch.cancelled_at, batch.reason = now, f"More than {batch.max_failures} jobs failed (max_failures)."
        scheduled = [row for event in _events(tally, now) for row in _callback_rows(batch, event, now)]
        callbacks += scheduled
        batch.open_callbacks += len(scheduled)
        tally.open_callbacks += len(scheduled)
        changes.append(
            [
                batch.pk, *(getattr(tally, name) for name in _COUNTERS), batch.status, batch.round, batch.failure_round,
                batch.attempted_round, batch.first_failure_id, tally.started_at, batch.finished_at, batch.cancelled_at,
                batch.gave_up, batch.reason,
            ]
        )  # fmt: skip
    if changes:
        _update(changes)
    for row in [row for row in callbacks if len(row) == len(inserting.NEW_JOB)][:claims]:
        row += [JobStatus.QUEUED.value, None, 1]
    if callbacks:
        inserting.jobs(callbacks)
    return callbacks


def _update(changes: list[list[object]]) -> None:
    table, params = database.values(_CHANGE, changes)
    moves = ", ".join(f"{name} = {name} + v_{name}" for name in _COUNTERS)
    database.execute(
        f"UPDATE {database.BATCH} SET {moves}, status = v_status, round = v_round, failure_round = v_failure_round,"
        " attempted_round = v_attempted_round, first_failure_id = v_first_failure,"
        " started_at = COALESCE(started_at, v_started_at), finished_at = v_finished_at, cancelled_at = v_cancelled_at,"
        " gave_up = v_gave_up, reason = v_reason"
        f" FROM {table} WHERE id = v_id",
        params,
    )


def schedule_missed_failure_callbacks(batch: "Batch", now: datetime) -> None:
    """Schedules failure callbacks that were registered after the failure had been told; `batch` is locked."""
    if batch.failure_round != batch.round:
        return
    told = database.jobs().filter(callback_of=batch, event=Event.FAILURE, round=batch.round)
    positions = set(told.values_list("position", flat=True))
    missed = [row for row in _callback_rows(batch, Event.FAILURE, now) if row[4] not in positions]
    if missed:
        inserting.jobs(missed)
        database.batches().filter(pk=batch.pk).update(open_callbacks=F("open_callbacks") + len(missed))


def can_end(batch: "Batch") -> bool:
    """Nothing is pending, nobody adds any more, and no retry is half through its rows."""
    return (
        batch.pending == 0
        and batch.finished_at is None
        and (batch.sealed_at is not None or batch.cancelled_at is not None)
        and batch.retry_position is None
    )


def _has_failed_too_often(batch: "Batch") -> bool:
    if not batch.pending and batch.sealed_at:
        return False  # nothing is left to be cancelled, nor comes any more
    # Not while a retry puts its failed jobs back: those that it has not come to yet are no new failures.
    return batch.max_failures is not None and batch.failed > batch.max_failures and batch.retry_position is None


def verdict(batch: "Batch") -> BatchStatus:
    if batch.cancelled_at and not batch.gave_up:
        return BatchStatus.CANCELLED
    return BatchStatus.FAILED if batch.failed or batch.cancelled else BatchStatus.SUCCEEDED


def _events(tally: Tally, now: datetime) -> list[Event]:
    """The events that are due now; each is marked on the batch, so that it is told once per round."""
    batch = tally.batch
    events = []
    if tally.first_failure and not batch.first_failure_id:
        batch.first_failure_id = tally.first_failure
    ends = can_end(batch)
    if ends:
        batch.status, batch.finished_at = verdict(batch), now
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


def _all_attempted(batch: "Batch", ends: bool) -> bool:
    if (
        not registers(batch, Event.ATTEMPTED)
        or batch.attempted_round == batch.round
        or not batch.sealed_at
        or batch.retry_position is not None
    ):
        return False
    return ends or not any(
        database.jobs().filter(batch=batch, attempts=0, status__in=statuses).exists()
        for statuses in (WAITING_HERE, IN_FLIGHT)  # each has its index
        if statuses is WAITING_HERE or batch.in_flight
    )


def _scheduled(run_after: float | str | None, now: datetime) -> list[object]:
    """Status, due time and dispatch of a callback that runs later than its event: seconds after it, or at a moment."""
    if not run_after:
        return []
    due = datetime.fromisoformat(run_after) if isinstance(run_after, str) else now + timedelta(seconds=run_after)
    return [JobStatus.SCHEDULED.value, due, 0]


def registers(batch: "Batch", event: Event) -> bool:
    """Whether the batch has a callback for the event."""
    return f'"event":"{event}"' in batch.registered_callbacks


def _callback_rows(batch: "Batch", event: Event, now: datetime) -> list[list[object]]:
    if batch.registered_callbacks == "[]":
        return []
    specs = [spec for spec in json.loads(batch.registered_callbacks) if spec["event"] == event]
    return [
        [
            uuid7(), None, batch.pk, event.value, position, batch.round, spec["func"], spec["arguments"],
            spec["queue"], spec["timeout"], spec["max_attempts"], spec["backoff"], spec["no_retry"], now,
            *_scheduled(spec["run_after"], now),
        ]
        for position, spec in enumerate(specs)
    ]  # fmt: skip
