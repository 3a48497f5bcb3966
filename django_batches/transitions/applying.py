"""Outcomes into rows: what became of each run, in bulk, each counted once.

Group commit: many outcomes in one transaction, whatever their number in five statements (the lease, the locks, the
rows, the counters, the time buckets). One transaction per job would be limited by the commits and by the lock of the
batch row (Laravel #39722).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from django.db import DataError, IntegrityError
from django.utils import timezone

from .. import database
from ..states import JobStatus
from ..transport.outcomes import Kind, Outcome
from . import claiming, finishing, job_updates, repairing
from .claiming import Claimed
from .finishing import Tally
from .frontier import Place
from .next_status import Change, decide
from .statistics import aggregate

if TYPE_CHECKING:
    from ..models import Batch

logger = logging.getLogger("django_batches")

_CAME_TO_NOTHING = set(Kind) - {Kind.SUCCEEDED, Kind.ON_HOLD}

_REFUSALS = (DataError, IntegrityError, ValueError, OverflowError)
"""What the database or its driver says to a value that it will not take."""


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

    @property
    def has_held(self) -> bool:
        """Jobs came back that were not started, because their batch is paused or cancelled."""
        return any(outcome.kind == Kind.ON_HOLD for outcome in self.done)

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
    with database.atomic():
        now = fence()
        batches = database.lock_batches({outcome.batch_id for outcome in outcomes}, skip_locked=True)
        ready, postponed, orphans = _sort(outcomes, batches)
        tallies = {key: Tally(batch) for key, batch in batches.items()}
        changes = decide(ready, batches, now)
        won = job_updates.write(changes, tallies, now)
        job_updates.begin_to_wait(won, now)
        late = job_updates.late_successes(ready, won, tallies, now)
        won += [change for change, _ in late]
        aggregate(won, now)
        touched = [tallies[key] for key in {change.outcome.batch_id for change in won}]
        callbacks = finishing.write(touched, now, claims=claims)
        claimed = claiming.claimed_as_written(callbacks)
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
    existing = set(database.batches().filter(pk__in=missing).values_list("pk", flat=True))
    return (
        ready,
        [outcome for outcome in outcomes if outcome.batch_id in existing],
        [outcome for outcome in outcomes if outcome.batch_id in missing - existing],
    )
