"""Applies outcomes to rows in bulk, each exactly once.

One transaction applies any number of outcomes in five statements: for the lease, the locks, the jobs, the counters and
the time buckets. With a transaction per outcome, the commits and the lock of the batch's row would limit the throughput
(Laravel #39722).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from uuid import UUID

from django.db import DataError, IntegrityError
from django.utils import timezone

from .. import database
from ..states import JobStatus
from ..transport.outcomes import Kind, Outcome
from . import batch_status, job_updates, repairing
from .claiming import Claimed
from .frontier import Place
from .job_status import Change, decide
from .statistics import aggregate

logger = logging.getLogger("django_batches")

_RUN_IS_VOID = set(Kind) - {Kind.SUCCEEDED, Kind.ON_HOLD}

_REFUSALS = (DataError, IntegrityError, ValueError, OverflowError)
"""What the database or its driver raises for a value that it does not take."""


@dataclass
class Recorded:
    """The effects of applied outcomes."""

    done: list[Outcome] = field(default_factory=list)
    """Applied, superseded, duplicate, or of a row that does not exist: never needed again."""
    postponed: list[Outcome] = field(default_factory=list)
    """Of batches that another transaction has locked: for the next round."""
    won: list[Change] = field(default_factory=list)
    """The changes that were written, except late successes (`late`)."""
    late: list[Change] = field(default_factory=list)
    superseded: list[tuple[UUID, int, str]] = field(default_factory=list)
    """(job, dispatch, queue) of runs that must not start any more, because of a late success."""
    scheduled: int = 0
    claimed: list[Claimed] = field(default_factory=list)
    """New callbacks that were claimed at once, to be pushed after the commit."""
    failed_too_often: list[UUID] = field(default_factory=list)
    """Batches that now have more failures than they allow: their other jobs must not start."""
    ended_children: list[UUID] = field(default_factory=list)
    """Batches that have ended, with their callbacks, and whose parents must be notified."""

    @property
    def failures(self) -> list[Change]:
        """Jobs that failed for good without a worker that could have logged it."""
        return [change for change in self.won if change.status == JobStatus.FAILED and not change.outcome.was_logged]

    @property
    def given_up(self) -> list[UUID]:
        """Jobs of which a run does not count: the children that it may have opened must be cancelled."""
        void = [change for change in self.won if change.outcome.kind in _RUN_IS_VOID]
        return [change.outcome.job_id for change in void + self.late]

    @property
    def put_back(self) -> list[Place]:
        return [(c.outcome.batch_id, *c.place) for c in self._claimable if c.outcome.is_job_of_batch]

    @property
    def claimable_callbacks(self) -> int:
        """Callbacks that wait to be claimed, as far as is known here."""
        return self.scheduled - len(self.claimed) + len(self._claimable) - len(self.put_back)

    @property
    def has_on_hold(self) -> bool:
        """Whether jobs came back that were not started, because their batch is paused or cancelled."""
        return any(outcome.kind == Kind.ON_HOLD for outcome in self.done)

    @property
    def is_for_parents(self) -> bool:
        """Whether a job waits for children now, or a child has ended: its parent may have to be notified."""
        return bool(self.ended_children) or any(change.status == JobStatus.WAITING for change in self.won)

    @property
    def _claimable(self) -> list[Change]:
        return [change for change in self.won if change.status == JobStatus.CREATED]

    def joined(self, other: "Recorded") -> "Recorded":
        return Recorded(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


def record(outcomes: Sequence[Outcome], fence: Callable[[], datetime] = timezone.now, *, claims: int = 0) -> Recorded:
    """Applies outcomes in one transaction. If the database refuses one of them, only the job of that outcome fails.

    Calls `fence` first in each transaction: it proves that the caller is the active coordinator, and returns the time.
    Claims up to `claims` of the callbacks that it schedules; the caller must push these. If they were claimed later, in
    a transaction of their own, it would take 1.3 times as long until the callback of a small batch is claimed.
    """
    try:
        return _apply(outcomes, fence, claims)
    except _REFUSALS as error:
        # Bisect the outcomes to isolate the one that cannot be written: it would block the outcomes of every batch.
        if len(outcomes) > 1:
            middle = len(outcomes) // 2
            first = record(outcomes[:middle], fence, claims=claims)
            return first.joined(record(outcomes[middle:], fence, claims=claims))
        return _record_refused(outcomes[0], error, fence)


def _record_refused(outcome: Outcome, error: Exception, fence: Callable[[], datetime]) -> Recorded:
    """Fails the job whose outcome the database refused."""
    if outcome.kind != Kind.REFUSED:
        # If drift caused the error, the job is not to blame: apply its outcome again after the repair.
        if isinstance(error, IntegrityError) and repairing.repair_counters(outcome.batch_id, skip_locked=True):
            return record([outcome], fence)
        return record([outcome.refused(error)], fence)
    repairing.repair_counters(outcome.batch_id, skip_locked=True)
    try:
        return _apply([outcome], fence)
    except _REFUSALS as again:
        logger.error("The outcome of job %s cannot be written and is dropped: %s (%s)", outcome.job_id, error, again)
        return Recorded([outcome])


def _apply(outcomes: Sequence[Outcome], fence: Callable[[], datetime], claims: int = 0) -> Recorded:
    with database.atomic():
        now = fence()
        ids = {outcome.batch_id for outcome in outcomes}
        batches = database.lock_batches(ids, skip_locked=True)
        missing = ids - set(batches)
        # Batches that another transaction has locked. The rest of the missing batches do not exist.
        locked = set(database.batches().filter(pk__in=missing).values_list("pk", flat=True)) if missing else missing
        ready = [outcome for outcome in outcomes if outcome.batch_id in batches]
        tallies = {key: batch_status.Tally(batch) for key, batch in batches.items()}
        won = job_updates.write(decide(ready, batches, now), tallies, now)
        late, superseded = job_updates.write_late_successes(ready, won, tallies, now)
        aggregate(won + late, now)
        touched = [tallies[key] for key in {change.outcome.batch_id for change in won + late}]
        callbacks = batch_status.update_batches(touched, now, claims=claims)
    return Recorded(
        done=[outcome for outcome in outcomes if outcome.batch_id not in locked],
        postponed=[outcome for outcome in outcomes if outcome.batch_id in locked],
        won=won,
        late=late,
        superseded=superseded,
        scheduled=len(callbacks),
        claimed=[Claimed.at_insert(row) for row in callbacks if row.status == JobStatus.QUEUED],
        failed_too_often=[key for key, batch in batches.items() if batch.cancelled_at == now],
        ended_children=[
            key for key, batch in batches.items() if batch.is_awaited and batch.finished_at and not batch.open_callbacks
        ],
    )
