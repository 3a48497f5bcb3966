"""The page that asks before anything is done, with counts."""

from typing import Any

import django
from django.db.models import QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext_lazy

from ..models import Batch
from . import actions, below
from .actions import Act, Target
from .permissions import PermissionsMixin

DEEPEST = 10_000
"""Batches that the list counts and pages through, and that one action is done to; older ones are found by filters."""
SHOWN = 20
"""Batches that the confirmation page of an action lists."""
LABELS = {
    "retry": gettext_lazy("Retry failed jobs of selected batches"),
    "cancel": gettext_lazy("Cancel selected batches"),
    "pause": gettext_lazy("Pause selected batches"),
    "resume": gettext_lazy("Resume selected batches"),
    "delete": gettext_lazy("Delete selected batches"),
}
"""The actions of the list."""


def newest(batches: "QuerySet[Batch]") -> "QuerySet[Batch]":
    """As many as the list says that there are."""
    return batches.model._default_manager.filter(pk__in=batches.order_by("-pk").values("pk")[:DEEPEST])


class ConfirmingMixin(PermissionsMixin):
    def confirmation(self, request: HttpRequest, act: Act, target: Target) -> HttpResponse:
        """Asks about one batch, or a job or group of failures in it."""
        return self._ask(
            request,
            act,
            target,
            title=str(act.question),
            batches=[target.batch],
            is_possible=act.is_possible(target),
            back=self.address("change", target.batch),
            original=target.batch,
        )

    def confirmation_of_many(self, request: HttpRequest, act: Act, queryset: "QuerySet[Batch]") -> HttpResponse:
        """Asks about the batches that were selected in the list: their counters together, and the newest of them."""
        queryset = newest(queryset)
        counters = ("failed", "cancelled", "pending", "in_flight", "total")
        sums = queryset.order_by().aggregate(**{name: Sum(name) for name in counters})
        together = Batch(**{name: value or 0 for name, value in sums.items()})
        return self._ask(
            request,
            act,
            Target(together),
            title=str(LABELS[act.name]),
            batches=list(queryset.order_by("-pk")[:SHOWN]),
            how_many=queryset.count(),
            is_possible=True,
            back=request.get_full_path(),
            selected=request.POST.getlist("_selected_action"),
            select_across=request.POST.get("select_across", "0"),
            action=request.POST["action"],
        )

    def address(self, name: str, batch: Batch | None = None) -> str:
        """The address of one of our pages: of a batch, or of all."""
        return reverse(f"{self.admin_site.name}:django_batches_batch_{name}", args=[batch.pk] if batch else [])

    def context_of_a_page(self, request: HttpRequest) -> dict[str, Any]:
        """What a page of our own needs to look like one of the admin's."""
        request.current_app = self.admin_site.name
        return {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "breadcrumbs_are_a_list": django.VERSION >= (6, 1),
        }

    def _ask(self, request: HttpRequest, act: Act, target: Target, **context: Any) -> HttpResponse:
        context = {
            **self.context_of_a_page(request),
            "act": act,
            "target": target,
            "count": act.count(target),
            "cancelled": target.batch.cancelled if act is actions.RETRY else 0,
            "asks_reason": act is actions.CANCEL,
            "below": below.note(act, target) if "selected" not in context else str(act.below or ""),
            **context,
        }
        return TemplateResponse(request, "admin/django_batches/batch/confirm.html", context)
