"""The page of a batch: its buttons, its settings and metadata, and its panels (see `panels`)."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib.admin.utils import unquote
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _

from ..calls.masking import masked_value
from ..models import Batch
from ..monitoring.formatting import duration, number, pauses
from . import actions, related_batches
from .action_views import ActingMixin
from .panels import panels

MAX_METADATA = 20_000
"""Characters of metadata shown."""


class PageMixin(ActingMixin):
    change_form_template = "admin/django_batches/batch/change_form.html"

    def get_fields(self, request: HttpRequest, obj: Batch | None = None) -> Any:
        """No form fields: the page shows panels instead."""
        return []

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = dict(extra_context or {})
        try:
            batch = self.get_queryset(request).filter(pk=UUID(unquote(object_id))).first()
        except ValueError:
            batch = None
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


def _metadata(batch: Batch) -> str:
    if not batch.metadata:
        return ""
    text = json.dumps(masked_value(batch.metadata), indent=2, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= MAX_METADATA else f"{text[:MAX_METADATA]}…"


def _facts(batch: Batch) -> list[tuple[str, str]]:
    """The options of the batch; those at the end only if they are set."""
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
