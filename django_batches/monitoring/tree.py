"""The batches above a batch and below it. Reads only; each function says how much at most.

Going up is one statement by primary keys. Going down is one per level, so that the planner sees how many it looks for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models import Q, QuerySet
from django.db.models.functions import Coalesce

from .. import database
from ..states import BatchStatus, JobStatus

if TYPE_CHECKING:
    from ..models import Batch, BatchJob

HIGHEST = 100
"""Levels that are looked at going up."""
DEEPEST = 25
"""Levels that are looked at going down."""
MOST = 200
"""Batches that are looked at going down."""
COUNTED = 10_000
"""Child batches that are counted, and chosen from."""

_ABOVE = f"""
WITH RECURSIVE above (job, position, event, owner, level) AS (
  SELECT j.id, j.position, j.event, COALESCE(j.batch_id, j.callback_of_id), 1
  FROM {database.BATCH} b JOIN {database.JOB} j ON j.id = b.parent_id WHERE b.id = %s
  UNION ALL
  SELECT j.id, j.position, j.event, COALESCE(j.batch_id, j.callback_of_id), level + 1
  FROM above JOIN {database.BATCH} b ON b.id = above.owner JOIN {database.JOB} j ON j.id = b.parent_id WHERE level < %s
)
SELECT job, position, event, owner FROM above ORDER BY level
"""


@dataclass(frozen=True)
class Opener:
    """The job or callback that opened a batch."""

    job_id: UUID
    position: int
    event: str
    """Of a callback; empty for a job."""
    owner_id: UUID
    """The batch that the job or callback belongs to."""


@dataclass(frozen=True)
class Child:
    """A child batch, as little of it as is needed to choose the few that are shown."""

    batch_id: UUID
    status: str
    is_ended: bool
    dispatch: int
    """The run of the opener that opened it."""
    opener: Opener

    @property
    def urgency(self) -> tuple[int, UUID]:
        """By this: first those that failed, then those that have not ended, then the others."""
        rank = 0 if self.status == BatchStatus.FAILED else 2 if self.is_ended else 1
        return rank, self.batch_id


def above(batch: "Batch") -> list[Opener]:
    """Who opened the batch, who opened the batch of that one, and so on: the nearest first."""
    if not batch.parent_id:
        return []
    found = database.execute(_ABOVE, [database.parameter(batch.pk), HIGHEST])
    return [
        Opener(database.as_uuid(job), position, event, database.as_uuid(owner)) for job, position, event, owner in found
    ]


def openers(batches: "Iterable[Batch]") -> dict[UUID, Opener]:
    """Who opened each of the batches that are children."""
    parents = {batch.parent_id for batch in batches if batch.parent_id}
    if not parents:
        return {}
    jobs = database.jobs().filter(pk__in=parents).values_list("pk", "position", "event", "batch", "callback_of")
    by_job = {pk: Opener(pk, position, event, job or callback) for pk, position, event, job, callback in jobs}
    return {batch.pk: by_job[batch.parent_id] for batch in batches if batch.parent_id in by_job}


def inside(batches: "QuerySet[Batch]", owners: Iterable[UUID]) -> "QuerySet[Batch]":
    """Those of the batches that jobs or callbacks of the owners have opened."""
    keys = list(owners)
    opened = Q(parent__batch__in=keys) | Q(parent__callback_of__in=keys)
    return batches.filter(opened, parent__isnull=False)


def children(batches: "QuerySet[Batch]", owners: Iterable[UUID], most: int = COUNTED) -> list[Child]:
    """Those of the batches that jobs or callbacks of the owners have opened, `most` of them, in no order."""
    keys = list(owners)
    return [_child(row) for row in _light(inside(batches, keys))[:most]] if keys else []


def opened_by(batches: "QuerySet[Batch]", jobs: "Iterable[BatchJob]") -> dict[UUID, list[Child]]:
    """Per job or callback those of the batches that its last run has opened, the most urgent first."""
    runs = {job.pk: job.dispatch for job in jobs}
    found: dict[UUID, list[Child]] = {}
    for row in _light(batches.filter(parent__in=list(runs)))[:COUNTED] if runs else []:
        child = _child(row)
        if runs[child.opener.job_id] == child.dispatch:
            found.setdefault(child.opener.job_id, []).append(child)
    for siblings in found.values():
        siblings.sort(key=lambda child: child.urgency)
    return found


def levels(root: UUID, chosen: "QuerySet[Batch]", most: int = MOST) -> "Iterator[list[Batch]]":
    """Those of the chosen batches that are below a batch, level by level, `most` in all.

    What is below a batch that was not chosen is not looked at.
    """
    owners = [root]
    for _ in range(DEEPEST):
        level = list(inside(chosen, owners).order_by()[:most]) if owners and most > 0 else []
        if not level:
            return
        yield sorted(level, key=lambda batch: batch.pk)
        most -= len(level)
        owners = [batch.pk for batch in level]


def awaited() -> "QuerySet[Batch]":
    """The child batches for which a job or callback that has returned still waits."""
    return database.batches().filter(is_awaited=True, parent__status=JobStatus.WAITING)


def waiting_jobs(batch: "Batch") -> "QuerySet[BatchJob]":
    """The jobs of a batch that wait for their child batches; what it costs grows with all that is awaited anywhere."""
    return database.jobs().filter(
        batch=batch,
        status=JobStatus.WAITING,
        pk__in=database.batches().filter(is_awaited=True, parent__isnull=False).values("parent_id"),
    )


def count_waiting(batch: "Batch") -> int:
    """How many jobs of the batch wait for their child batches."""
    return waiting_jobs(batch).order_by().count() if batch.pending > batch.in_flight else 0


def _light(batches: "QuerySet[Batch]") -> Any:
    owner = Coalesce("parent__batch_id", "parent__callback_of_id")
    fields = ("pk", "status", "finished_at", "parent_dispatch", "parent", "parent__position", "parent__event")
    return batches.order_by().values_list(*fields, owner)


def _child(row: Any) -> Child:
    key, status, finished_at, dispatch, *opener = row
    return Child(key, status, finished_at is not None, dispatch, Opener(*opener))
