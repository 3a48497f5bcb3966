"""The jobs of a batch, page by page along their positions: no page costs more than the first one.

Each filter reads an index of its own. PostgreSQL left to itself would look for the ten succeeded ones among a million
by walking the batch, so that such a page goes over a bounded stretch at a time and says so.
"""

from dataclasses import dataclass
from typing import Any
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
from ..monitoring.formatting import number
from ..monitoring.queues import due_queues, jobs_in_flight
from ..states import JobStatus
from .action_views import ActingMixin
from .counters import counters
from .job_rows import light, members, rows_of

SIZE = 50
"""Jobs on a page."""
STRETCH = 50_000
"""Positions that a filter without an index of its own goes over at most."""


@dataclass(frozen=True)
class ProbeCache:
    """What the address asks for; what makes no sense in it is passed over."""

    status: str = ""
    fingerprint: str | None = None
    job: str = ""
    after: int | None = None
    """Jobs with a greater position."""
    before: int | None = None
    """Jobs with a smaller one, the last of them."""

    @classmethod
    def of(cls, request: HttpRequest) -> "ProbeCache":
        given = request.GET
        status = given.get("status", "") if given.get("status") in _STATUSES else ""
        fingerprint = given["fingerprint"].replace("\0", "") if "fingerprint" in given else None
        return cls(
            "failed" if fingerprint is not None else status,
            fingerprint,
            given.get("job", ""),
            _position(given.get("after")),
            _position(given.get("before")),
        )

    def address(self, **changes: Any) -> str:
        """The query string of the same with another place."""
        found = {"status": self.status, "fingerprint": self.fingerprint, **changes}
        return "?" + urlencode({key: value for key, value in found.items() if value not in (None, "")})


_STATUSES = ("", "failed", "in_flight", "to_run", "waiting", "succeeded", "cancelled")


class JobsMixin(ActingMixin):
    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.jobs_view)
        return [path("<uuid:object_id>/jobs/", view, name="django_batches_batch_jobs"), *super().get_urls()]

    def jobs_view(self, request: HttpRequest, object_id: UUID) -> HttpResponse:
        batch = self.batch_of(request, object_id)
        asked = ProbeCache.of(request)
        jobs, further = page_of(batch, asked)
        links = _links(batch, asked, jobs, further)
        now = timezone.now()
        context = {
            **self.context_of_a_page(request),
            "title": _("Jobs of %(batch)s") % {"batch": batch},
            "batch": batch,
            "original": batch,
            "admin_name": self.admin_site.name,
            "asked": asked,
            "group": batch.failure_groups.filter(fingerprint=asked.fingerprint).first() if asked.fingerprint else None,
            "tabs": _tabs(batch, asked),
            "rows": rows_of(jobs, now, self.get_queryset(request)),
            "links": links,
            "may_retry": self.may(request, "retry", batch),
            "may_cancel": self.may(request, "cancel", batch),
            "may_see_arguments": self.may(request, "arguments", batch),
        }
        return TemplateResponse(request, "admin/django_batches/batch/jobs.html", context)


def page_of(batch: Batch, asked: ProbeCache) -> tuple[list[BatchJob], int | None]:
    """The jobs of the page in order of their positions, and where to go on looking if it stopped early."""
    jobs = light(batch.jobs.all())
    if asked.job:
        return _one(batch, asked.job), None
    if asked.fingerprint is not None:
        return _along(jobs.filter(status=JobStatus.FAILED, fingerprint=asked.fingerprint), asked), None
    if asked.status in ("failed", "cancelled"):
        return _along(jobs.filter(status=asked.status), asked), None
    if asked.status == "in_flight":
        return _chosen(jobs, jobs_in_flight([batch]).values_list("position", flat=True)[:10_000], asked), None
    if asked.status == "waiting":
        return _along(jobs.filter(pk__in=tree.waiting_jobs(batch).values("pk")), asked), None
    if asked.status == "to_run":
        return _to_run(batch, jobs, asked), None
    if asked.status == "succeeded":
        return _within_a_stretch(batch, jobs.filter(status=JobStatus.SUCCEEDED), asked)
    return _along(jobs, asked), None


def _along(jobs: BatchJobQuerySet, asked: ProbeCache) -> list[BatchJob]:
    """One more than a page, which shows that there are more; backwards for `before`."""
    if asked.before is not None:
        return list(jobs.filter(position__lt=asked.before).order_by("-position")[: SIZE + 1])[::-1]
    after = -1 if asked.after is None else asked.after
    return list(jobs.filter(position__gt=after).order_by("position")[: SIZE + 1])


def _one(batch: Batch, key: str) -> list[BatchJob]:
    """A job or a callback: either may have opened the batch from whose page somebody comes."""
    try:
        return list(light(members(batch).filter(pk=UUID(key))))
    except ValueError:
        return []


def _chosen(jobs: BatchJobQuerySet, positions: Any, asked: ProbeCache) -> list[BatchJob]:
    """A page of the jobs at these positions, which are few."""
    chosen = sorted(positions)
    if asked.before is not None:
        chosen = [position for position in chosen if position < asked.before][-(SIZE + 1) :]
    else:
        after = -1 if asked.after is None else asked.after
        chosen = [position for position in chosen if position > after][: SIZE + 1]
    return list(jobs.filter(position__in=chosen).order_by("position"))


def _to_run(batch: Batch, jobs: BatchJobQuerySet, asked: ProbeCache) -> list[BatchJob]:
    """Those that wait for their place, per queue, and those that wait for their time: each by an index."""
    found = _along(jobs.filter(status=JobStatus.SCHEDULED), asked)
    for _key, queue in due_queues([batch]):
        found += _along(jobs.filter(status=JobStatus.CREATED, queue=queue), asked)
    found.sort(key=lambda job: job.position)
    return found[-(SIZE + 1) :] if asked.before is not None else found[: SIZE + 1]


def _within_a_stretch(batch: Batch, jobs: BatchJobQuerySet, asked: ProbeCache) -> tuple[list[BatchJob], int | None]:
    if asked.before is not None:
        return _along(jobs.filter(position__gte=max(0, asked.before - STRETCH)), asked), None
    start = -1 if asked.after is None else asked.after
    found = _along(jobs.filter(position__lte=start + STRETCH), asked)
    stopped_early = len(found) <= SIZE and start + STRETCH < batch.total
    return found, start + STRETCH if stopped_early else None


def _links(batch: Batch, asked: ProbeCache, jobs: list[BatchJob], further: int | None) -> dict[str, str]:
    """The addresses of the pages around this one; cuts the extra job off `jobs`."""
    has_more = len(jobs) > SIZE
    if has_more:
        jobs.pop(0 if asked.before is not None else -1)
    links: dict[str, str] = {}
    if asked.job:
        return links
    has_earlier = has_more if asked.before is not None else asked.after is not None
    has_later = has_more if asked.before is None else asked.before < batch.total
    if has_earlier:
        links["first"] = asked.address()
        links["previous"] = asked.address(before=jobs[0].position if jobs else asked.after)
    if has_later:
        links["next"] = asked.address(after=jobs[-1].position if jobs else (asked.before or 0) - 1)
        links["last"] = asked.address(before=batch.total)
    if further is not None:
        links["further"] = asked.address(after=further)
    return links


def _tabs(batch: Batch, asked: ProbeCache) -> list[dict[str, Any]]:
    """The filters with the batch's own counts."""
    is_tab = asked.fingerprint is None and not asked.job
    found = counters(batch)
    tabs = [("", _("all"), batch.total)]
    for name in _STATUSES[1:]:
        if name in found:
            tabs.append((name, found[name].word, found[name].count))
    return [
        {
            "name": name or "all",
            "word": word,
            "count": number(count),
            "url": ProbeCache(name).address(),
            "is_current": is_tab and asked.status == name,
        }
        for name, word, count in tabs
    ]


def _position(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else None
