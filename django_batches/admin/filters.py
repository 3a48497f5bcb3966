"""The filters of the changelist. None of them selects the distinct values of a column, which would scan the table."""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from django.contrib.admin import SimpleListFilter
from django.contrib.admin.views.main import SEARCH_VAR
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from ..models import Batch, BatchJob
from ..models.aggregates import TimeBucket
from ..monitoring import tree
from .job_rows import jobs_and_callbacks

RECENT = 1_000
"""How many of the newest batches the queue filter reads to find the queues that it offers."""
STALLED = timedelta(minutes=5)
"""A batch in which no job has ended for this long has made no recent progress."""


class LevelFilter(SimpleListFilter):
    """Hides child batches by default, except in a search and in the list of a batch's children."""

    title = _("level")
    parameter_name = "level"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [("top", _("Top level")), ("child", _("Child batches")), ("all", _("All levels"))]

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Removes Django's own "All", which would be the default."""
        return islice(super().choices(changelist), 1, None)

    def value(self) -> str:
        value, query = super().value(), self.request.GET
        if value in ("top", "child", "all"):
            return value
        return "all" if query.get(SEARCH_VAR) or query.get(InsideFilter.parameter_name) else "top"

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        return queryset if self.value() == "all" else queryset.filter(parent__isnull=self.value() == "top")


class InsideFilter(SimpleListFilter):
    """The child batches of a batch, or of one of its jobs or callbacks. Only links on the pages of a batch use it."""

    title = _("child batches of")
    parameter_name = "inside"
    batch: Batch | None = None
    job: BatchJob | None = None

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        value = self.value()
        if not value:
            return []
        self.batch = model_admin.get_object(request, value)
        if self.batch is None:
            jobs = jobs_and_callbacks(model_admin.get_queryset(request), value)
            self.job = jobs.only("func", "position").first()
        return [(value, self.batch or self.job or "?")]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        if not self.value():
            return queryset
        if self.job:
            return queryset.filter(parent=self.job)
        return tree.child_batches(queryset, [self.batch.pk]) if self.batch else queryset.none()


class QueueFilter(SimpleListFilter):
    title = _("queue")
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        newest = model_admin.get_queryset(request).order_by("-pk").values_list("queue", flat=True)[:RECENT]
        return [(queue, queue) for queue in sorted({*newest, *filter(None, [self.value()])})]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        queue = (self.value() or "").replace("\0", "")  # PostgreSQL rejects NUL characters
        return queryset.filter(queue=queue) if queue else queryset


class OptionsFilter(SimpleListFilter):
    """A filter with a fixed set of options."""

    options: dict[str, tuple[Promise, Callable[[], Q]]]
    """For each value of the parameter: its label, and a function that returns the condition."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [(value, label) for value, (label, _condition) in self.options.items()]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        _label, condition = self.options.get(self.value() or "", (None, Q))
        return queryset.filter(condition())


class DeadlineFilter(OptionsFilter):
    title = _("deadline")
    parameter_name = "deadline"
    options = {
        "overdue": (_("Overdue"), lambda: Q(finished_at=None, deadline_at__lt=timezone.now())),
        "late": (_("Ended late"), lambda: Q(finished_at__gt=F("deadline_at"))),
    }


def _created_within(hours: int) -> Q:
    # A UUIDv7 begins with the time, so the index of the primary key serves this filter and the order of the list.
    moment = timezone.now() - timedelta(hours=hours)
    return Q(pk__gte=UUID(int=int(moment.timestamp() * 1000) << 80))


class CreatedFilter(OptionsFilter):
    title = _("created")
    parameter_name = "created"
    options = {
        "hour": (_("Past hour"), partial(_created_within, 1)),
        "day": (_("Past 24 hours"), partial(_created_within, 24)),
        "week": (_("Past 7 days"), partial(_created_within, 7 * 24)),
        "month": (_("Past 30 days"), partial(_created_within, 30 * 24)),
    }


class FailuresFilter(OptionsFilter):
    title = _("failures")
    parameter_name = "failures"
    options = {
        "yes": (_("With failures"), lambda: Q(failed__gt=0)),
        "no": (_("Without failures"), lambda: Q(failed=0)),
    }


def _is_progressing(yes: bool) -> Q:
    since = timezone.now() - STALLED
    progress = Q(Exists(TimeBucket.objects.filter(batch=OuterRef("pk"), starts_at__gte=since)))
    return Q(finished_at=None) & (progress if yes else Q(grown_at__lt=since) & ~progress)


class ProgressFilter(OptionsFilter):
    title = _("progress")
    parameter_name = "moves"
    options = {
        "no": (_("No recent progress"), lambda: _is_progressing(False)),
        "yes": (_("Progressing"), lambda: _is_progressing(True)),
    }


FILTERS = (
    "status", LevelFilter, InsideFilter, QueueFilter, CreatedFilter, FailuresFilter, DeadlineFilter, ProgressFilter,
)  # fmt: skip
