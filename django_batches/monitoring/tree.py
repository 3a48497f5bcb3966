"""Reads the tree of batches: the batches above and below a batch, up to a limit.

Reading the batches above takes one statement, by primary keys. Reading those below takes one statement per level, so
that the planner knows how many rows to expect.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from django.db.models.functions import Coalesce

from .. import database
from ..models import Batch, BatchJob
from ..states import BatchStatus, JobStatus

MAX_LEVELS_UP = 100
MAX_LEVELS_DOWN = 25
MAX_BATCHES = 200
"""How many batches below a batch are read."""
MAX_CHILDREN = 10_000
"""How many child batches are read to count and rank them."""

_ANCESTORS = f"""
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
    owner_id: UUID


@dataclass(frozen=True)
class Child:
    """A child batch: only the fields that are needed to sort it."""

    batch_id: UUID
    status: str
    is_ended: bool
    dispatch: int
    """The dispatch number of the opener's run in which it opened this batch."""
    opener: Opener


def ancestors(batch: Batch) -> list[Opener]:
    """Returns the opener of the batch, the opener of that opener's batch, and so on: nearest first."""
    rows: Any = database.execute(_ANCESTORS, [database.parameter(batch.pk), MAX_LEVELS_UP]) if batch.parent_id else []
    return [Opener(database.as_uuid(job), pos, event, database.as_uuid(owner)) for job, pos, event, owner in rows]


def openers(batches: Iterable[Batch]) -> dict[UUID, Opener]:
    """Returns the opener of each child batch among the batches, by batch id."""
    parents = {batch.parent_id for batch in batches if batch.parent_id}
    jobs = database.jobs().filter(pk__in=parents).annotate(owner=Coalesce("batch", "callback_of"))
    by_job = {row[0]: Opener(*row) for row in jobs.values_list("pk", "position", "event", "owner")}
    return {batch.pk: by_job[batch.parent_id] for batch in batches if batch.parent_id in by_job}


def child_batches(batches: QuerySet[Batch], owners: Iterable[UUID]) -> QuerySet[Batch]:
    """Returns those of the batches that jobs or callbacks of the owners (batch ids) opened."""
    keys = list(owners)
    return batches.filter(Q(parent__batch__in=keys) | Q(parent__callback_of__in=keys), parent__isnull=False)


def children(batches: QuerySet[Batch]) -> list[Child]:
    """Returns the child batches among the batches: failed, then unfinished, then others; at most `MAX_CHILDREN`."""
    rows: Any = batches.order_by().values_list(
        "pk", "status", "finished_at", "parent_dispatch", "parent", "parent__position", "parent__event",
        Coalesce("parent__batch_id", "parent__callback_of_id"),
    )[:MAX_CHILDREN]  # fmt: skip
    found = [Child(key, status, bool(end), run, Opener(*opener)) for key, status, end, run, *opener in rows]
    return sorted(found, key=lambda child: (child.status != BatchStatus.FAILED, child.is_ended, child.batch_id))


def opened_by(batches: QuerySet[Batch], jobs: Iterable[BatchJob]) -> dict[UUID, list[Child]]:
    """Returns, by id of the job or callback, those of the batches that its last run opened, most urgent first."""
    runs = {job.pk: job.dispatch for job in jobs}
    found: dict[UUID, list[Child]] = {}
    for child in children(batches.filter(parent__in=list(runs))):
        if runs[child.opener.job_id] == child.dispatch:
            found.setdefault(child.opener.job_id, []).append(child)
    return found


def levels(root: UUID, among: QuerySet[Batch], limit: int = MAX_BATCHES) -> Iterator[list[Batch]]:
    """Yields the batches below the root by level, at most `limit` in all. Skips those not in `among` and all below."""
    owners = [root]
    for _ in range(MAX_LEVELS_DOWN):
        level = list(child_batches(among, owners).order_by()[:limit])
        if not level:
            return
        yield sorted(level, key=lambda batch: batch.pk)
        limit -= len(level)
        owners = [batch.pk for batch in level]


def waiting_jobs(batch: Batch) -> QuerySet[BatchJob]:
    """Returns the jobs of a batch that wait for child batches. The cost grows with all awaited batches anywhere."""
    openers = database.batches().filter(is_awaited=True, parent__isnull=False).values("parent_id")
    return database.jobs().filter(batch=batch, status=JobStatus.WAITING, pk__in=openers)
