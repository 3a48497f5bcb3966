"""The dry run of the reconciler: finds what it would repair now, and why, and changes nothing."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone
from redis import Redis

from .. import database
from ..conf import settings
from ..coordinator import lease, reconcile, record
from ..states import IN_FLIGHT, JobStatus
from ..transitions import cancelling, deleting, job_status, repairing, retrying
from ..transport.client import Keys
from ..transport.outcomes import Outcome

PAGE = 1_000
_CONSEQUENCES = {
    JobStatus.CREATED: "would be dispatched again",
    JobStatus.SCHEDULED: "would be retried later",
    JobStatus.CANCELLED: "would be cancelled",
    JobStatus.FAILED: "would fail for good",
    JobStatus.SUCCEEDED: "would succeed",
}


@dataclass(frozen=True)
class Repair:
    """An inconsistency, and what the coordinator would do about it."""

    code: str
    """The kind of inconsistency: lost, counters, end, cancel, retry, delete or abandoned."""
    batch_id: UUID
    text: str
    job_id: UUID | None = None


def planned_repairs(redis: Redis, before_second_look: Callable[[int], None] = lambda count: None) -> list[Repair]:
    """Returns everything that the coordinator would repair. Raises `RedisError` if Redis is down.

    If some jobs have no trace in Redis, it calls `before_second_look` with their number, waits
    `reconcile.SECOND_LOOK` seconds and looks again, as the coordinator does.
    """
    return [*_lost(redis, before_second_look), *_batches_to_repair()]


def _lost(redis: Redis, before_second_look: Callable[[int], None]) -> Iterator[Repair]:
    """Yields the jobs in flight that are missing in Redis, or whose lease has expired."""
    never_held = lease.Lease("dry run")  # a lease that is not held allows no writes
    reconciler = reconcile.Reconciler(redis, never_held, record.Recorder(redis, never_held))
    reconciler.look()
    if suspects := len(reconciler.suspects.since):
        before_second_look(suspects)
        time.sleep(reconcile.SECOND_LOOK)
        reconciler.look()
    reported = _reported(redis)
    verdicts = [outcome for outcome, _queue in reconciler.verdicts if outcome.execution not in reported]
    for start in range(0, len(verdicts), PAGE):
        yield from _consequences(verdicts[start : start + PAGE])


def _reported(redis: Redis) -> set[tuple[UUID, int]]:
    """Returns the runs whose outcome is already in the stream, and which are therefore not lost."""
    found: set[tuple[UUID, int]] = set()
    start = "-"
    while True:
        page: Any = redis.xrange(Keys().outcomes, min=start, count=PAGE)
        for _entry, fields in page:
            with suppress(ValueError):
                found.add(Outcome.loads(fields.get(b"o", b"")).execution)
        if len(page) < PAGE:
            return found
        start = f"({page[-1][0].decode()}"


def _consequences(verdicts: list[Outcome]) -> Iterator[Repair]:
    """Yields what the reconciler's verdicts would do to the jobs that are still in flight."""
    jobs = database.jobs().in_bulk([outcome.job_id for outcome in verdicts])
    batches = database.batches().in_bulk({outcome.batch_id for outcome in verdicts})
    verdicts = [outcome for outcome in verdicts if outcome.batch_id in batches]
    for change in job_status.decide(verdicts, batches, timezone.now()):
        job = jobs.get(change.outcome.job_id)
        if job is None or job.dispatch != change.outcome.dispatch or job.status not in IN_FLIGHT:
            continue
        name = f"{job.event} callback" if job.event else f"job {job.position}"
        text = f"{name} ({job.func}), {job.status}: {change.outcome.error} It {_CONSEQUENCES[change.status]}."
        yield Repair("lost", change.outcome.batch_id, text, job.pk)


def _batches_to_repair() -> Iterator[Repair]:
    """Yields unfinished ends, cancels, retries and deletions of batches, abandoned batches, and wrong counters."""
    for key in repairing.batches_to_end():
        yield Repair("end", key, "It has no pending jobs but has not ended. It would be ended.")
    for key in cancelling.unfinished_cancels():
        yield Repair("cancel", key, "It was cancelled but some of its jobs still wait. They would be cancelled.")
    for key in retrying.unfinished_retries():
        yield Repair("retry", key, "The retry of its failed jobs is incomplete. It would be completed.")
    for key in deleting.unfinished_deletions():
        yield Repair("delete", key, "Its deletion is incomplete. It would be completed.")
    seconds = settings().OPEN_TIMEOUT
    for key in cancelling.abandoned_batches(timezone.now() - timedelta(seconds=seconds)):
        text = f"It has not been sealed and no job was added for {seconds} s. It would be cancelled."
        yield Repair("abandoned", key, text)
    for key in repairing.batches_to_check():
        if drift := repairing.drift(key):
            by = ", ".join(f"{name} by {difference:+d}" for name, difference in drift.items())
            yield Repair("counters", key, f"Its counters differ from its rows ({by}). They would be repaired.")
