"""The jobs of a batch, in pages ordered by position. No page costs more than the first one.

Each filter reads an index of its own, but succeeded jobs have no index: PostgreSQL would scan the whole batch to find
ten of a million. So one page scans at most `SCAN_LIMIT` positions, and says if it stopped early.
"""

from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from ..models import Batch, BatchJob
from ..models.querysets import BatchJobQuerySet
from ..monitoring import tree
from ..monitoring.queues import due_queues, jobs_in_flight
from ..states import JobStatus
from .action_views import ActingMixin, parse_number
from .job_rows import jobs_and_callbacks, rows_of, without_payloads
from .panels import counters

T = TypeVar("T")

PAGE_SIZE = 50
SCAN_LIMIT = 50_000
"""The most positions that one page scans for a filter without an index."""
STATUSES = ("", "failed", "in_flight", "to_run", "waiting", "succeeded", "cancelled")
"""The values of the status filter."""


@dataclass(frozen=True)
class JobsQuery:
    """The query string of the page. Invalid values are ignored."""

    status: str = ""
    fingerprint: str | None = None
    job: str = ""
    after: int = -1
    before: int | None = None

    @classmethod
    def of(cls, request: HttpRequest) -> "JobsQuery":
        query = request.GET
        fingerprint = query["fingerprint"].replace("\0", "") if "fingerprint" in query else None
        status = "failed" if fingerprint is not None else query.get("status", "")
        after, before = (parse_number(query.get(name)) for name in ("after", "before"))
        known_status = status if status in STATUSES else ""
        return cls(known_status, fingerprint, query.get("job", ""), -1 if after is None else after, before)

    def includes(self, position: int) -> bool:
        return position < self.before if self.before is not None else position > self.after

    def url(self, **changes: Any) -> str:
        """Returns the query string for another page of the same jobs."""
        parameters = {"status": self.status, "fingerprint": self.fingerprint, **changes}
        return "?" + urlencode({key: value for key, value in parameters.items() if value not in (None, "")})


class JobsMixin(ActingMixin):
    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.jobs_view)
        return [path("<uuid:object_id>/jobs/", view, name="django_batches_batch_jobs"), *super().get_urls()]

    def jobs_view(self, request: HttpRequest, object_id: UUID) -> HttpResponse:
        batch = self.batch_of(request, object_id)
        query = JobsQuery.of(request)
        jobs, stopped_at = page_of(batch, query)
        links = _links(batch, query, jobs, stopped_at)
        groups = batch.failure_groups.filter(fingerprint=query.fingerprint)
        context = {
            **self.page_context(request),
            "title": _("Jobs of %(batch)s") % {"batch": batch},
            **self.job_context(request, batch),
            "original": batch,
            "query": query,
            "group": groups.first() if query.fingerprint else None,
            "tabs": _tabs(batch, query),
            "rows": rows_of(jobs, timezone.now(), self.get_queryset(request)),
            "links": links,
        }
        return TemplateResponse(request, "admin/django_batches/batch/jobs.html", context)


def page_of(batch: Batch, query: JobsQuery) -> tuple[list[BatchJob], int | None]:
    """Returns the jobs of the page by position, and the position at which the scan stopped, if it stopped early."""
    jobs = without_payloads(batch.jobs.all())
    if query.job:
        return list(without_payloads(jobs_and_callbacks([batch], query.job))), None
    if query.status == "to_run":
        return _to_run(batch, jobs, query), None
    if query.status == "succeeded":
        return _scan(batch, jobs.filter(status=JobStatus.SUCCEEDED), query)
    if query.fingerprint is not None:
        jobs = jobs.filter(status=JobStatus.FAILED, fingerprint=query.fingerprint)
    elif query.status == "in_flight":
        positions = jobs_in_flight([batch]).values_list("position", flat=True)[:10_000]
        jobs = jobs.filter(position__in=_cut(sorted(filter(query.includes, positions)), query))
    elif query.status == "waiting":
        jobs = jobs.filter(pk__in=tree.waiting_jobs(batch).values("pk"))
    elif query.status:
        jobs = jobs.filter(status=query.status)
    return _page(jobs, query), None


def _page(jobs: BatchJobQuerySet, query: JobsQuery) -> list[BatchJob]:
    """Returns the jobs of the page and, if there is one, the next job: it shows that there is another page."""
    if query.before is not None:
        return list(jobs.filter(position__lt=query.before).order_by("-position")[: PAGE_SIZE + 1])[::-1]
    return list(jobs.filter(position__gt=query.after).order_by("position")[: PAGE_SIZE + 1])


def _cut(found: list[T], query: JobsQuery) -> list[T]:
    return found[-(PAGE_SIZE + 1) :] if query.before is not None else found[: PAGE_SIZE + 1]


def _to_run(batch: Batch, jobs: BatchJobQuerySet, query: JobsQuery) -> list[BatchJob]:
    """Returns the scheduled jobs, and the created jobs of each queue. Each of these reads uses an index."""
    found = _page(jobs.filter(status=JobStatus.SCHEDULED), query)
    for _key, queue in due_queues([batch]):
        found += _page(jobs.filter(status=JobStatus.CREATED, queue=queue), query)
    return _cut(sorted(found, key=lambda job: job.position), query)


def _scan(batch: Batch, jobs: BatchJobQuerySet, query: JobsQuery) -> tuple[list[BatchJob], int | None]:
    if query.before is not None:
        return _page(jobs.filter(position__gte=max(0, query.before - SCAN_LIMIT)), query), None
    end = query.after + SCAN_LIMIT
    found = _page(jobs.filter(position__lte=end), query)
    return found, end if len(found) <= PAGE_SIZE and end < batch.total else None


def _links(batch: Batch, query: JobsQuery, jobs: list[BatchJob], stopped_at: int | None) -> dict[str, str]:
    """Returns the links to other pages. Removes from `jobs` the extra job that `_page` has read."""
    is_backward = query.before is not None
    has_more = len(jobs) > PAGE_SIZE
    if has_more:
        jobs.pop(0 if is_backward else -1)
    links: dict[str, str] = {}
    if query.job:
        return links
    if has_more if is_backward else query.after >= 0:
        links["first"] = query.url()
        links["previous"] = query.url(before=jobs[0].position if jobs else query.after)
    if has_more if query.before is None else query.before < batch.total:
        links["next"] = query.url(after=jobs[-1].position if jobs else (query.before or 0) - 1)
        links["last"] = query.url(before=batch.total)
    if stopped_at is not None:
        links["continue"] = query.url(after=stopped_at)
    return links


def _tabs(batch: Batch, query: JobsQuery) -> list[tuple[str, str, int, str, bool]]:
    """Returns each filter as (name, label, number of jobs, URL, whether it is the current one)."""
    is_tab = query.fingerprint is None and not query.job
    tabs = [("", _("all"), batch.total), *sorted(counters(batch), key=lambda counter: STATUSES.index(counter[0]))]
    return [
        (status or "all", label, count, JobsQuery(status).url(), is_tab and query.status == status)
        for status, label, count in tabs
    ]
