"""What the coordinator would repair now, and why: read with its own eyes, and nothing is changed."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone
from redis import Redis

from .. import database
from ..conf import settings
from ..coordinator import reconcile
from ..coordinator.lease import Lease
from ..coordinator.record import Recorder
from ..states import IN_FLIGHT, JobStatus
from ..transitions import cancelling, deleting, next_status, repairing, retrying
from ..transport.client import Keys
from ..transport.outcomes import Outcome

PAGE = 1_000
_AFTER = {
    JobStatus.CREATED: "it would be dispatched again",
    JobStatus.SCHEDULED: "it would be tried again later",
    JobStatus.CANCELLED: "it would be cancelled",
    JobStatus.FAILED: "it would fail for good",
    JobStatus.SUCCEEDED: "it would succeed",
}


@dataclass(frozen=True)
class Repair:
    """Something that differs, and what would be done about it."""

    code: str
    """lost, counters, end, cancel, retry, delete or abandoned."""
    batch_id: UUID
    text: str
    job_id: UUID | None = None


def audit(redis: Redis, before_second_look: Callable[[int], None] = lambda count: None) -> list[Repair]:
    """Everything that would be repaired. Raises `RedisError` where Redis is away.

    Where jobs have no trace in Redis it calls `before_second_look` with their number and looks again after
    `reconcile.SECOND_LOOK` seconds, as the coordinator does.
    """
    return [*_lost(redis, before_second_look), *_unfinished(), *_counters()]


def _lost(redis: Redis, before_second_look: Callable[[int], None]) -> Iterator[Repair]:
    """Rows in flight that Redis knows nothing of, or whose lease has run out."""
    lease = Lease("audit")  # never acquired: whoever would write with it is refused
    looking = reconcile.Reconciler(redis, lease, Recorder(redis, lease))
    looking.look()
    if looking.has_suspects:
        before_second_look(looking.suspects)
        time.sleep(reconcile.SECOND_LOOK)
        looking.look()
    waiting = _in_stream(redis)
    verdicts = [outcome for outcome in looking.verdicts if outcome.execution not in waiting]
    for start in range(0, len(verdicts), PAGE):
        yield from _judged(verdicts[start : start + PAGE])


def _in_stream(redis: Redis) -> set[tuple[UUID, int]]:
    """The runs whose outcome waits to be applied: they are not lost."""
    found: set[tuple[UUID, int]] = set()
    start = "-"
    while True:
        page: Any = redis.xrange(Keys().outcomes, min=start, count=PAGE)
        for _entry, fields in page:
            try:
                found.add(Outcome.loads(fields.get(b"o", b"")).execution)
            except ValueError:
                continue
        if len(page) < PAGE:
            return found
        start = f"({page[-1][0].decode()}"


def _judged(verdicts: list[Outcome]) -> Iterator[Repair]:
    """The verdicts on rows that are still in flight, with what would become of these."""
    jobs = {job.pk: job for job in database.jobs().filter(pk__in=[outcome.job_id for outcome in verdicts])}
    batches = {
        batch.pk: batch for batch in database.batches().filter(pk__in={outcome.batch_id for outcome in verdicts})
    }
    verdicts = [outcome for outcome in verdicts if outcome.batch_id in batches]
    for change in next_status.decide(verdicts, batches, timezone.now()):
        job = jobs.get(change.outcome.job_id)
        if job is None or job.dispatch != change.outcome.dispatch or job.status not in IN_FLIGHT:
            continue
        what = f"{job.event} callback" if job.event else f"job {job.position}"
        text = f"{what} ({job.func}), {job.status}: {change.outcome.error} So {_AFTER[change.status]}."
        yield Repair("lost", change.outcome.batch_id, text, job.pk)


def _unfinished() -> Iterator[Repair]:
    """What was begun and cut off, and what could end."""
    for key in repairing.to_end():
        yield Repair("end", key, "Nothing of it is pending and it has not ended: it would be ended.")
    for key in cancelling.unfinished_cancels():
        yield Repair("cancel", key, "It is being cancelled and some of its jobs wait still: they would be cancelled.")
    for key in retrying.unfinished():
        yield Repair("retry", key, "Its failed jobs are being put back, in chunks: that would go on.")
    for key in deleting.unfinished():
        yield Repair("delete", key, "It is being deleted, in chunks: that would go on.")
    seconds = settings().OPEN_TIMEOUT
    for key in cancelling.abandoned(timezone.now() - timedelta(seconds=seconds)):
        yield Repair("abandoned", key, f"Nothing was added for {seconds} s and it was never sealed: cancelled.")


def _counters() -> Iterator[Repair]:
    for key in repairing.to_check():
        if found := repairing.drift(key):
            by = ", ".join(f"{name} by {difference:+d}" for name, difference in found.items())
            yield Repair("counters", key, f"Its counters differ from its rows ({by}): they would be repaired.")
