"""A job as the pages show it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ClassVar

from django.db.models import Q, QuerySet
from django.db.models.functions import Left

from ..calls.arguments import masked, masked_result
from ..models import Batch, BatchJob
from ..models.querysets import BatchJobQuerySet
from ..monitoring import tree
from ..monitoring.formatting import duration
from ..monitoring.progress import STATES, state
from ..states import WAITING_HERE, JobStatus
from ..transitions.children import unsuccessful

FEW = 3
"""Child batches that a job shows."""
FAILED_BY_CHILD = "django_batches.child_failed"
"""The error type of a job that failed because of its child batch."""


@dataclass(frozen=True)
class ChildLink:
    """A child batch as the row of the job shows it that opened it."""

    batch: Batch

    @property
    def state(self) -> str:
        return state(self.batch)

    @property
    def word(self) -> str:
        return str(STATES[self.state])


@dataclass(frozen=True)
class JobRow:
    """A job with what its row shows."""

    LONGEST: ClassVar[int] = 2_000
    """Characters of arguments and of a result that are shown: they may have megabytes."""

    job: BatchJob
    arguments: str
    result: str
    duration: str
    headline: str
    """The last line of the error, which says most."""
    children: Sequence[ChildLink] = ()
    """The first of the child batches that its last run opened."""
    more_children: int = 0

    @property
    def can_retry(self) -> bool:
        return self.job.status in (JobStatus.FAILED, JobStatus.CANCELLED)

    @property
    def can_cancel(self) -> bool:
        return self.job.status in WAITING_HERE

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its child batches."""
        return self.job.status == JobStatus.WAITING

    @property
    def failed_by_child(self) -> bool:
        return self.job.error_type == FAILED_BY_CHILD

    @classmethod
    def of(cls, job: BatchJob, now: datetime, children: Sequence[Batch] = (), more_children: int = 0) -> "JobRow":
        """`job` comes from `light`."""
        took = ""
        if job.started_at:
            took = duration((job.finished_at or now) - job.started_at)
        return cls(
            job,
            arguments=_cut(job.shown_arguments, partial(masked, job.func, is_callback=bool(job.event))),  # type: ignore[attr-defined]
            result=_cut(job.shown_result, masked_result),  # type: ignore[attr-defined]
            duration=took,
            headline=next((line for line in job.error.splitlines() if line.strip()), job.error_type),
            children=[ChildLink(batch) for batch in children],
            more_children=more_children,
        )


def rows_of(jobs: Sequence[BatchJob], now: datetime, visible: "QuerySet[Batch]") -> list[JobRow]:
    """The rows of jobs from `light`, with their child batches among those that the user may see."""
    opened = tree.opened_by(visible, jobs)
    failed = [(job.pk, job.dispatch) for job in jobs if job.error_type == FAILED_BY_CHILD and job.pk in opened]
    for key, reasons in unsuccessful(failed).items() if failed else ():
        guilty = {reason.batch_id for reason in reasons}
        opened[key] = [child for child in opened[key] if child.batch_id in guilty] or opened[key]
    chosen = [child.batch_id for children in opened.values() for child in children[:FEW]]
    batches = visible.in_bulk(chosen) if chosen else {}
    found = []
    for job in jobs:
        children = opened.get(job.pk, [])
        shown = [batches[child.batch_id] for child in children[:FEW] if child.batch_id in batches]
        found.append(JobRow.of(job, now, shown, len(children) - len(children[:FEW])))
    return found


def members(batch: Batch) -> "BatchJobQuerySet":
    """Its jobs and its callbacks."""
    return BatchJob.objects.filter(Q(batch=batch) | Q(callback_of=batch))


def light(jobs: "BatchJobQuerySet") -> "BatchJobQuerySet":
    """The jobs without their payloads, and the beginnings of these."""
    found = jobs.defer("arguments", "result_text").annotate(
        shown_arguments=Left("arguments", JobRow.LONGEST + 1), shown_result=Left("result_text", JobRow.LONGEST + 1)
    )
    return found


def _cut(text: str | None, shown: Callable[[str], str]) -> str:
    text = text or ""
    return shown(text) if len(text) <= JobRow.LONGEST else f"{shown(text[: JobRow.LONGEST])}…"
