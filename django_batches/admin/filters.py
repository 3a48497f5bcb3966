"""The filters of the list. None asks the database for the distinct values of a column."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib.admin import SimpleListFilter
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..models import Batch, TimeBucket

RECENT = 1_000
"""The newest batches, whose queues the filter offers."""
STILL = timedelta(minutes=5)
"""A batch in which nothing has ended for so long does not move."""


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
