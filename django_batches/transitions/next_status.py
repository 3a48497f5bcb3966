"""What an outcome makes of its row: ended, another attempt, or given back. Decides and writes nothing."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .. import database
from ..states import JOB_ENDED, JobStatus
from ..transport.outcomes import Kind, Outcome, fingerprint

if TYPE_CHECKING:
    from ..models import Batch, BatchJob

MAX_LOSSES = 3
"""Runs whose worker was killed or lost, after which a job is failed as a poison pill."""

DEPLOY_PAUSES = [timedelta(seconds=30), timedelta(minutes=5), timedelta(minutes=5)]
"""Before a job whose function a worker does not have is tried again: a rolling deploy takes its time."""

_ATTEMPT_FAILED = {Kind.FAILED, Kind.KILLED, Kind.TIMEOUT, Kind.RETRY}
_GIVEN_BACK = {Kind.ON_HOLD, Kind.VANISHED, Kind.INTERRUPTED, Kind.MISSING}


@dataclass(slots=True)
class Change:
    """What an outcome makes of its row."""

    # Not frozen: see Outcome.

    outcome: Outcome
    status: JobStatus
    tried: int = 0
    lost: int = 0
    due_at: datetime | None = None
    reason: str = ""
    place: tuple[int, str | None] = (0, None)
    """Position and queue of the job, where it was read."""

    @property
    def has_ended(self) -> bool:
        return self.status in JOB_ENDED

    @property
    def is_success_of_run(self) -> bool:
        """Whether nothing but the moments, the result and the worker has to be written."""
        return self.status is JobStatus.SUCCEEDED and self.tried == 1 and self.outcome.finished_at is not None

    def success_row(self) -> list[Any]:
        outcome = self.outcome
        return [
            outcome.job_id, outcome.dispatch, outcome.started_at, outcome.finished_at, outcome.result, outcome.worker,
        ]  # fmt: skip

    def row(self, now: datetime) -> list[Any]:
        outcome = self.outcome
        due_at = now if self.status == JobStatus.CREATED else self.due_at  # from now on it waits for its next turn
        return [
            outcome.job_id, outcome.dispatch, self.status.value, self.tried, self.lost, due_at,
            outcome.started_at, (outcome.finished_at or now) if self.has_ended else None, outcome.result,
            outcome.error_type, self.reason or outcome.error, outcome.traceback, outcome.fingerprint, outcome.worker,
        ]  # fmt: skip


def decide(outcomes: Iterable[Outcome], batches: "dict[UUID, Batch]", now: datetime) -> list[Change]:
    """One change per (job, dispatch): the first outcome told wins among equals, a success over all others."""
    first: dict[tuple[UUID, int], Outcome] = {}
    for outcome in outcomes:
        known = first.get(outcome.execution)
        if known is None or (outcome.kind == Kind.SUCCEEDED and known.kind != Kind.SUCCEEDED):
            first[outcome.execution] = outcome
    simple = (Kind.SUCCEEDED, Kind.ON_HOLD)
    asked = [outcome.job_id for outcome in first.values() if outcome.kind not in simple]
    found = (
        {job.pk: job for job in database.jobs().filter(pk__in=asked).defer(*database.LARGE_JOB_FIELDS)} if asked else {}
    )
    waiting = database.awaiting([key for key, outcome in first.items() if outcome.has_children])
    changes = []
    for outcome in first.values():
        batch = batches[outcome.batch_id]
        if outcome.kind == Kind.SUCCEEDED:
            changes.append(_returned(outcome, outcome.execution in waiting))
        elif outcome.kind == Kind.ON_HOLD:
            changes.append(Change(outcome, _back(batch, outcome)))
        elif job := found.get(outcome.job_id):
            change = _unfinished(outcome, job, batch, now)
            change.place = (job.position, job.queue)
            changes.append(change)
    return changes


def _returned(outcome: Outcome, has_children: bool) -> Change:
    if has_children:
        return Change(outcome, JobStatus.WAITING, tried=1)
    if outcome.returned:
        kind = "django_batches.child_missing"
        error = f"The job returned batch {outcome.returned}, which was rolled back with the job's transaction."
        told = replace(outcome, error_type=kind, error=error, fingerprint=fingerprint(kind, ""))
        return Change(told, JobStatus.FAILED, tried=1)
    return Change(outcome, JobStatus.SUCCEEDED, tried=1)


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
    if outcome.kind == Kind.MISSING and not (batch.cancelled_at and outcome.is_job_of_batch):
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
    if isinstance(spec, dict):
        pause = spec["first"]
        for _ in range(attempt - 1):
            if pause >= spec["limit"]:
                break
            pause *= spec["factor"]
        pause = min(pause, spec["limit"])
        return float(pause * (1 - spec["jitter"] * random.random()))
    if isinstance(spec, list):
        return float(spec[min(attempt, len(spec)) - 1]) if spec else 0.0
    return float(spec)


def _back(batch: "Batch", outcome: Outcome) -> JobStatus:
    """Where a job goes that was taken from RQ without having run."""
    return JobStatus.CANCELLED if batch.cancelled_at and outcome.is_job_of_batch else JobStatus.CREATED
