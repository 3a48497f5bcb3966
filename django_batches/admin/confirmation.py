"""The confirmation pages, which show what an action affects before it runs."""

from typing import Any

import django
from django.db.models import Q, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _, ngettext

from .. import database
from ..models import Batch
from ..monitoring import tree
from ..monitoring.formatting import number
from . import actions
from .actions import Action, Target
from .job_rows import FAILED_BY_CHILD
from .permissions import PermissionsMixin

MAX_BATCHES = 10_000
"""How many of the newest batches the changelist counts and lists, and one action affects. Filters find older ones."""
MAX_BELOW = 1_000
"""At most this many batches below a batch are counted."""
SHOWN = 20
"""How many batches the confirmation page of a changelist action lists."""


def newest(batches: "QuerySet[Batch]") -> "QuerySet[Batch]":
    """Limits the batches to the number that the changelist shows."""
    return batches.model._default_manager.filter(pk__in=batches.order_by("-pk").values("pk")[:MAX_BATCHES])


class ConfirmingMixin(PermissionsMixin):
    def confirmation(self, request: HttpRequest, action: Action, target: Target) -> HttpResponse:
        """Returns the page for one batch, or for a job or failure group of it."""
        return self._confirm(
            request,
            action,
            target,
            title=str(action.question),
            batches=[target.batch],
            is_possible=action.is_possible(target),
            back=self.address("change", target.batch),
            original=target.batch,
            child_effect=_child_effect(action, target),
        )

    def confirmation_of_many(self, request: HttpRequest, action: Action, queryset: "QuerySet[Batch]") -> HttpResponse:
        """The page for the batches selected in the changelist: the sums of their counters, and the newest of them."""
        queryset = newest(queryset)
        counters = ("failed", "cancelled", "pending", "in_flight", "total")
        sums = queryset.order_by().aggregate(**{name: Sum(name) for name in counters})
        return self._confirm(
            request,
            action,
            Target(Batch(**{name: value or 0 for name, value in sums.items()})),
            title=str(action.changelist_label),
            batches=list(queryset.order_by("-pk")[:SHOWN]),
            how_many=queryset.count(),
            is_possible=True,
            back=request.get_full_path(),
            selected=request.POST.getlist("_selected_action"),
            select_across=request.POST.get("select_across", "0"),
            changelist_action=request.POST["action"],
            child_effect=action.child_effect or "",
        )

    def address(self, name: str, batch: Batch | None = None) -> str:
        return reverse(f"{self.admin_site.name}:django_batches_batch_{name}", args=[batch.pk] if batch else [])

    def page_context(self, request: HttpRequest) -> dict[str, Any]:
        """Returns the context that the templates of the admin site need."""
        request.current_app = self.admin_site.name
        return {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "breadcrumbs_are_a_list": django.VERSION >= (6, 1),
        }

    def _confirm(self, request: HttpRequest, action: Action, target: Target, **context: Any) -> HttpResponse:
        common = {**self.page_context(request), "action": action, "target": target, "count": action.count(target)}
        return TemplateResponse(request, "admin/django_batches/batch/confirm.html", common | context)


def _child_effect(action: Action, target: Target) -> str:
    """Describes what the action does to child batches, and to how many; empty if it affects none."""
    if action.child_effect is None:
        return ""
    if action.permission == "retry":
        affected = _affected_jobs(target)
    else:
        affected = _affected_batches(target.batch, Q() if action is actions.DELETE else Q(finished_at=None))
    sentences = [str(action.child_effect), affected] if affected else []
    if action.permission == "retry" and target.batch.parent_id and not target.batch.is_awaited:
        sentences.append(_("This is a child batch: the jobs that failed because of it wait for it again."))
    return " ".join(sentences)


def _affected_jobs(target: Target) -> str:
    """Describes how many jobs failed because of their child batches, according to the failure groups."""
    if target.job:
        return _("This affects this job.") if target.job.error_type == FAILED_BY_CHILD else ""
    groups = target.batch.failure_groups.filter(error_type=FAILED_BY_CHILD)
    if target.group:
        groups = groups.filter(pk=target.group.pk)
    count = sum(groups.values_list("count", flat=True))
    text = ngettext("This affects %(count)s job.", "This affects %(count)s jobs.", count)
    return text % {"count": number(count)} if count else ""


def _affected_batches(batch: Batch, condition: Q) -> str:
    batches = database.batches().filter(condition).order_by().only("pk")
    count = sum(len(level) for level in tree.levels(batch.pk, batches, MAX_BELOW + 1))
    if count > MAX_BELOW:
        return _("This affects more than %(count)s batches below it.") % {"count": number(MAX_BELOW)}
    text = ngettext("This affects %(count)s batch below it.", "This affects %(count)s batches below it.", count)
    return text % {"count": number(count)} if count else ""
