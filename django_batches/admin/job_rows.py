"""Turns jobs and callbacks into rows for the pages of the admin."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

from django.db.models import Q, QuerySet
from django.db.models.functions import Left
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _

from ..calls.arguments import masked_arguments, masked_result
from ..database.base import OctetLength
from ..models import Batch, BatchJob
from ..models.querysets import BatchJobQuerySet
from ..monitoring import tree
from ..monitoring.formatting import duration
from ..monitoring.progress import STATES, state
from ..states import WAITING_HERE, JobStatus
from ..transitions.children import unsuccessful

MAX_CHILDREN = 3
"""How many child batches are shown per job."""
MAX_SIZE = 4_000
"""Limit in bytes of JSON. For longer arguments and results, only the size is shown."""
RETRYABLE = (JobStatus.FAILED, JobStatus.CANCELLED)
FAILED_BY_CHILD = "django_batches.child_failed"
"""The error type of a job that failed because of its child batch."""


@dataclass(frozen=True)
class JobRow:
    job: BatchJob
    arguments: str
    result: str
    duration: str
    headline: str
    children: Sequence[tuple[Batch, str, str]]
    """The first child batches opened by its last run: (batch, state, label)."""
    more_children: int
    can_retry: bool
    can_cancel: bool
    failed_by_child: bool


def rows_of(jobs: Sequence[BatchJob], now: datetime, visible: "QuerySet[Batch]") -> list[JobRow]:
    """Returns the rows of jobs that `without_payloads` loaded. Shows only child batches in `visible`."""
    opened = tree.opened_by(visible, jobs)
    failed = [(job.pk, job.dispatch) for job in jobs if job.error_type == FAILED_BY_CHILD and job.pk in opened]
    for key, failed_children in unsuccessful(failed).items() if failed else ():
        causes = {child.pk for child in failed_children}
        opened[key] = [child for child in opened[key] if child.batch_id in causes] or opened[key]
    shown_keys = [child.batch_id for children in opened.values() for child in children[:MAX_CHILDREN]]
    batches = visible.in_bulk(shown_keys) if shown_keys else {}
    rows = []
    for job in jobs:
        children = opened.get(job.pk, [])
        shown = [batches[child.batch_id] for child in children[:MAX_CHILDREN] if child.batch_id in batches]
        mask_arguments = partial(masked_arguments, job.func, is_callback=bool(job.event))
        row = JobRow(
            job,
            arguments=_shown(job, "arguments", mask_arguments),
            result=_shown(job, "result", masked_result),
            duration=duration((job.finished_at or now) - job.started_at) if job.started_at else "",
            headline=next((line for line in job.error.splitlines() if line.strip()), job.error_type),
            children=[(batch, state(batch), str(STATES[state(batch)])) for batch in shown],
            more_children=len(children[MAX_CHILDREN:]),
            can_retry=job.status in RETRYABLE,
            can_cancel=job.status in WAITING_HERE,
            failed_by_child=job.error_type == FAILED_BY_CHILD,
        )
        rows.append(row)
    return rows


def jobs_and_callbacks(batches: Iterable[Batch], key: str) -> BatchJobQuerySet:
    """Finds the job or callback with this ID among those of the batches. An invalid ID finds nothing."""
    try:
        return BatchJob.objects.filter(Q(batch__in=batches) | Q(callback_of__in=batches), pk=UUID(key))
    except ValueError:
        return BatchJob.objects.none()


def without_payloads(jobs: BatchJobQuerySet) -> BatchJobQuerySet:
    """Loads arguments and results only up to `MAX_SIZE` characters, and their sizes."""
    return jobs.defer("arguments", "result_text").annotate(
        shown_arguments=Left("arguments", MAX_SIZE),
        size_of_arguments=OctetLength("arguments"),
        shown_result=Left("result_text", MAX_SIZE),
        size_of_result=OctetLength("result_text"),
    )


def _shown(job: BatchJob, name: str, mask: Callable[[str], str]) -> str:
    text, size = getattr(job, f"shown_{name}"), getattr(job, f"size_of_{name}")
    if not text:
        return ""
    if size > MAX_SIZE:
        return _("%(size)s of JSON, not shown") % {"size": filesizeformat(size)}
    return mask(text)
