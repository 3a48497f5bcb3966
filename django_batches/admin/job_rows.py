"""A job as the pages show it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ClassVar

from django.db.models import Q, QuerySet
from django.db.models.functions import Left
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _

from ..calls.arguments import masked_arguments, masked_result
from ..database.functions import OctetLength
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

    LONGEST: ClassVar[int] = 4_000
    """Bytes of JSON. Of longer arguments and results only the size is shown."""

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
            arguments=_shown(job, "arguments", partial(masked_arguments, job.func, is_callback=bool(job.event))),
            result=_shown(job, "result", masked_result),
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
    """The jobs without long arguments and results, of which it loads the size only."""
    return jobs.defer("arguments", "result_text").annotate(
        shown_arguments=Left("arguments", JobRow.LONGEST),
        size_of_arguments=OctetLength("arguments"),
        shown_result=Left("result_text", JobRow.LONGEST),
        size_of_result=OctetLength("result_text"),
    )


def _shown(job: BatchJob, name: str, masked: Callable[[str], str]) -> str:
    text, size = getattr(job, f"shown_{name}"), getattr(job, f"size_of_{name}")
    if not text:
        return ""
    if size > JobRow.LONGEST:
        return _("%(size)s of JSON, not shown") % {"size": filesizeformat(size)}
    return masked(text)
