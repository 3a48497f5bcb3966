"""The filters of the list. None asks the database for the distinct values of a column."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib.admin import SimpleListFilter
from django.contrib.admin.views.main import SEARCH_VAR
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..models import Batch, BatchJob, TimeBucket
from ..monitoring import tree

RECENT = 1_000
"""The newest batches, whose queues the filter offers."""
STILL = timedelta(minutes=5)
"""A batch in which nothing has ended for so long does not move."""


class LevelFilter(SimpleListFilter):
    """Child batches are part of what opened them: the list shows them where one asks for them, or looks for a batch."""

    title = _("level")
    parameter_name = "level"

    def __init__(self, request: HttpRequest, params: Any, model: Any, model_admin: Any) -> None:
        self.is_looking = bool(request.GET.get(SEARCH_VAR) or request.GET.get(InsideFilter.parameter_name))
        super().__init__(request, params, model, model_admin)

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [("top", _("top level")), ("child", _("child batches")), ("all", _("all levels"))]

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Without the "All" of other filters, which would be the default."""
        for value, word in self.lookup_choices:
            query = changelist.get_query_string({self.parameter_name: value})
            yield {"selected": self.chosen() == value, "query_string": query, "display": word}

    def chosen(self) -> str:
        given = self.value()
        if given in ("top", "child", "all"):
            return given
        return "all" if self.is_looking else "top"

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        chosen = self.chosen()
        return queryset if chosen == "all" else queryset.filter(parent__isnull=chosen == "top")


class InsideFilter(SimpleListFilter):
    """The child batches of one batch, or of one of its jobs or callbacks; offered by its page alone."""

    title = _("child batches of")
    parameter_name = "inside"

    def __init__(self, request: HttpRequest, params: Any, model: Any, model_admin: Any) -> None:
        self.batch: Batch | None = None
        self.job: BatchJob | None = None
        super().__init__(request, params, model, model_admin)

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        given = self.value()
        if not given:
            return []
        try:
            key = UUID(given)
        except ValueError:
            return [(given, "?")]
        visible = model_admin.get_queryset(request)
        self.batch = visible.filter(pk=key).first()
        if self.batch is None:
            jobs = BatchJob.objects.filter(Q(batch__in=visible) | Q(callback_of__in=visible), pk=key)
            self.job = jobs.only("func", "position").first()
        return [(given, self.batch or self.job or "?")]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        if not self.value():
            return queryset
        if self.job:
            return queryset.filter(parent=self.job)
        return tree.child_batches(queryset, [self.batch.pk]) if self.batch else queryset.none()


class DeadlineFilter(SimpleListFilter):
    title = _("deadline")
    parameter_name = "deadline"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [("overdue", _("overdue")), ("late", _("ended late"))]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        if self.value() == "overdue":
            return queryset.filter(finished_at=None, deadline_at__lt=timezone.now())
        return queryset.filter(finished_at__gt=F("deadline_at")) if self.value() == "late" else queryset


class QueueFilter(SimpleListFilter):
    title = _("queue")
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        newest = model_admin.get_queryset(request).order_by("-pk").values_list("queue", flat=True)[:RECENT]
        return [(queue, queue) for queue in sorted({*newest, *filter(None, [self.value()])})]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        queue = (self.value() or "").replace("\0", "")  # PostgreSQL refuses it
        return queryset.filter(queue=queue) if queue else queryset


class CreatedFilter(SimpleListFilter):
    title = _("created")
    parameter_name = "created"
    HOURS = {"hour": 1, "day": 24, "week": 168, "month": 720}

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [
            ("hour", _("within the last hour")),
            ("day", _("within 24 hours")),
            ("week", _("within 7 days")),
            ("month", _("within 30 days")),
        ]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        hours = self.HOURS.get(self.value() or "")
        if hours is None:
            return queryset
        # By the key, which begins with the time (UUIDv7) and is the order of the list: no other index is needed.
        moment = timezone.now() - timedelta(hours=hours)
        return queryset.filter(pk__gte=UUID(int=int(moment.timestamp() * 1000) << 80))


class FailuresFilter(SimpleListFilter):
    title = _("failures")
    parameter_name = "failures"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [("yes", _("has failures")), ("no", _("no failures"))]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        if self.value() == "yes":
            return queryset.filter(failed__gt=0)
        return queryset.filter(failed=0) if self.value() == "no" else queryset


class MovesFilter(SimpleListFilter):
    title = _("movement")
    parameter_name = "moves"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [("no", _("does not move")), ("yes", _("moves"))]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Batch]") -> "QuerySet[Batch]":
        if self.value() not in ("yes", "no"):
            return queryset
        since = timezone.now() - STILL
        ended = Exists(TimeBucket.objects.filter(batch=OuterRef("pk"), starts_at__gte=since))
        alive = queryset.filter(finished_at=None)
        if self.value() == "yes":
            return alive.filter(ended)
        return alive.filter(~ended, grown_at__lt=since)
