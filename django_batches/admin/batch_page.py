"""The page of a batch: its buttons, its settings and metadata, its panels (see `panels`), and the live updates."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.urls import URLPattern, path
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache

from ..calls.masking import masked_value
from ..models import Batch
from ..monitoring.formatting import duration, number, pauses
from ..monitoring.progress import snapshots
from ..views import ids_of
from . import actions, related_batches
from .action_views import ActingMixin
from .panels import PANELS, panels

MAX_METADATA = 20_000
"""How many characters of the metadata are shown."""


class PageMixin(ActingMixin):
    change_form_template = "admin/django_batches/batch/change_form.html"

    def get_fields(self, request: HttpRequest, obj: Batch | None = None) -> Any:
        """Returns no form fields, because the page shows panels instead."""
        return []

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = dict(extra_context or {})
        batch = self.get_object(request, unquote(object_id))
        if batch is not None and self.has_view_permission(request, batch):
            context |= {
                **panels(self, request, batch),
                "title": str(batch),
                "subtitle": None,
                "buttons": [
                    (action, number(batch.failed) if action is actions.RETRY and batch.failed else "")
                    for action in actions.BATCH_ACTIONS
                    if action.is_possible(actions.Target(batch)) and self.may(request, action.permission, batch)
                ],
                "metadata": _metadata(batch),
                "ancestors": related_batches.ancestors(batch, self.get_queryset(request)),
                "facts": _facts(batch),
            }
        return super().change_view(request, object_id, form_url, context)


class LiveMixin(ActingMixin):
    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        urls = [
            path("live/", view(never_cache(self.live_view)), name="django_batches_batch_live"),
            path("<uuid:object_id>/live/", view(never_cache(self.live_page)), name="django_batches_batch_live_page"),
        ]
        return [*urls, *super().get_urls()]

    def live_view(self, request: HttpRequest) -> JsonResponse:
        """Returns the snapshots of the batches in `?id=…&id=…` that the user may view."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        batches = self.get_queryset(request).filter(pk__in=ids_of(request))
        return JsonResponse({"batches": snapshots([b for b in batches if self.has_view_permission(request, b)])})

    def live_page(self, request: HttpRequest, object_id: UUID) -> JsonResponse:
        """Returns the snapshots of a batch and of its tree, and the HTML of the panels on its page."""
        batch = self.batch_of(request, object_id)
        context = panels(self, request, batch)
        html = {name: render_to_string(template, context, request) for name, template in PANELS.items()}
        below = context["tree"].shown if context["tree"] else {}
        return JsonResponse({"batches": {**below, str(batch.pk): context["shown"]}, "panels": html})


def _metadata(batch: Batch) -> str:
    if not batch.metadata:
        return ""
    text = json.dumps(masked_value(batch.metadata), indent=2, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= MAX_METADATA else f"{text[:MAX_METADATA]}…"


def _facts(batch: Batch) -> list[tuple[str, str]]:
    """Lists the options of the batch. Leaves out optional ones that are not set."""
    optional = [
        (_("No retry for"), ", ".join(json.loads(batch.no_retry))),
        (_("Concurrency"), str(batch.concurrency or "")),
        (_("Failures allowed"), "" if batch.max_failures is None else str(batch.max_failures)),
        (_("Deadline"), duration(timedelta(seconds=batch.deadline)) if batch.deadline is not None else ""),
        (_("Key"), batch.key),
    ]
    return [
        (_("ID"), str(batch.pk)),
        (_("Queue"), batch.queue),
        (_("Timeout"), duration(timedelta(seconds=batch.timeout))),
        (_("Attempts"), str(batch.max_attempts)),
        (_("Backoff"), pauses(json.loads(batch.backoff)) or _("none")),
        *((label, text) for label, text in optional if text),
        (_("Round"), str(batch.round)),
    ]
