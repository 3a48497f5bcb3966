"""Decides the next status of a job after an outcome. This module only decides; `job_updates` writes."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from .. import database
from ..states import JOB_ENDED, JobStatus
from ..transport.outcomes import Kind, Outcome, fingerprint

MAX_LOSSES = 3
"""The number of losses (see the glossary) that fails a job, so that it cannot kill workers forever."""

DEPLOY_PAUSES = [timedelta(seconds=30), timedelta(minutes=5), timedelta(minutes=5)]
"""Pauses before another run of a job whose function a worker could not import, for example during a rolling deploy."""

_ATTEMPT_FAILED = {Kind.FAILED, Kind.KILLED, Kind.TIMEOUT, Kind.RETRY}
_GIVEN_BACK = {Kind.ON_HOLD, Kind.VANISHED, Kind.INTERRUPTED, Kind.MISSING}


@dataclass(slots=True)
class Change:
    """The next status of a job."""  # not frozen: see Outcome

    outcome: Outcome
    status: JobStatus
    tried: int = 0
    lost: int = 0
    due_at: datetime | None = None
    reason: str = ""
    """The error text, if not that of the outcome."""
    place: tuple[int, str | None] = (0, None)
    """Position and queue of the job, if its row was read."""

    @property
    def has_ended(self) -> bool:
        return self.status in JOB_ENDED

    @property
    def is_success_of_run(self) -> bool:
        return self.status is JobStatus.SUCCEEDED and self.tried == 1


def decide(outcomes: Iterable[Outcome], batches: "dict[UUID, database.Batch]", now: datetime) -> list[Change]:
    """Returns one change per (job, dispatch). Of several outcomes of a dispatch, a success wins, or else the first."""
    first: dict[tuple[UUID, int], Outcome] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.kind != Kind.SUCCEEDED):
        first.setdefault(outcome.execution, outcome)
    ids = [outcome.job_id for outcome in first.values() if outcome.kind not in (Kind.SUCCEEDED, Kind.ON_HOLD)]
    jobs = database.jobs().defer(*database.LARGE_JOB_FIELDS).in_bulk(ids) if ids else {}
    awaiting = runs_with_open_children([key for key, outcome in first.items() if outcome.has_children])
    changes = []
    for outcome in first.values():
        batch = batches[outcome.batch_id]
        if outcome.kind == Kind.SUCCEEDED:
            changes.append(_returned(outcome, outcome.execution in awaiting))
        elif outcome.kind == Kind.ON_HOLD:
            changes.append(Change(outcome, _given_back(batch, outcome)))
        elif job := jobs.get(outcome.job_id):
            change = _unsuccessful(outcome, job, batch, now)
            change.place = (job.position, job.queue)
            changes.append(change)
    return changes


def runs_with_open_children(executions: Iterable[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
    """Returns those of the runs (job, dispatch) that have a child batch which has not notified its parent yet."""
    wanted = set(executions)
    if not wanted:
        return set()
    children = database.batches().filter(parent_id__in=[key for key, _ in wanted], is_awaited=True)
    return wanted & set(children.values_list("parent_id", "parent_dispatch"))


def _returned(outcome: Outcome, has_open_children: bool) -> Change:
    if has_open_children:
        return Change(outcome, JobStatus.WAITING, tried=1)
    if outcome.returned:
        kind = "django_batches.child_missing"
        error = f"The job returned batch {outcome.returned}, which was rolled back with the job's transaction."
        outcome = replace(outcome, error_type=kind, error=error, fingerprint=fingerprint(kind, ""))
        return Change(outcome, JobStatus.FAILED, tried=1)
    return Change(outcome, JobStatus.SUCCEEDED, tried=1)


def _unsuccessful(outcome: Outcome, job: "database.BatchJob", batch: "database.Batch", now: datetime) -> Change:
    """Decides what follows a run without a success: another run, or the end of the job."""
    lost = int(outcome.kind in (Kind.KILLED, Kind.INTERRUPTED, Kind.MISSING))
    tried = int(outcome.kind not in _GIVEN_BACK)
    is_cancelled = batch.cancelled_at is not None and outcome.is_job_of_batch
    if job.losses + lost >= MAX_LOSSES:
        cause = (
            "It could not be imported" if outcome.kind == Kind.MISSING else "Its worker was killed or lost while it ran"
        )
        reason = f"{cause}, {MAX_LOSSES} losses in all. {outcome.error}".strip()
        return Change(outcome, JobStatus.FAILED, tried, lost, reason=reason)
    if outcome.kind == Kind.CANCELLED:
        return Change(outcome, JobStatus.CANCELLED)
    if outcome.kind == Kind.MISSING and not is_cancelled:
        return Change(outcome, JobStatus.SCHEDULED, 0, lost, due_at=now + DEPLOY_PAUSES[job.losses])
    if outcome.kind in _GIVEN_BACK:
        return Change(outcome, _given_back(batch, outcome), tried, lost)
    limit = job.max_attempts if outcome.retry_max is None else outcome.retry_max + 1
    attempts = job.attempts + tried
    if is_cancelled or outcome.kind not in _ATTEMPT_FAILED or outcome.is_final or attempts >= limit:
        return Change(outcome, JobStatus.FAILED, tried, lost)
    delay = outcome.retry_after if outcome.retry_after is not None else backoff_delay(job.backoff, attempts)
    if delay <= 0:
        return Change(outcome, JobStatus.CREATED, tried, lost)
    return Change(outcome, JobStatus.SCHEDULED, tried, lost, due_at=now + timedelta(seconds=delay))


def backoff_delay(backoff: str, attempt: int) -> float:
    """Returns the seconds to wait after the failed attempt number `attempt`, which starts at 1."""
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


def _given_back(batch: "database.Batch", outcome: Outcome) -> JobStatus:
    """Returns the next status of a job whose run uses no attempt."""
    return JobStatus.CANCELLED if batch.cancelled_at and outcome.is_job_of_batch else JobStatus.CREATED
