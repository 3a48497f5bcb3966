"""The page of a batch."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib.admin.utils import unquote
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _

from ..models import Batch
from ..monitoring.formatting import duration, number
from . import actions, trees
from .action_views import ActingMixin
from .panels import backoff, metadata, panels


class PageMixin(ActingMixin):
    change_form_template = "admin/django_batches/batch/change_form.html"

    def get_fields(self, request: HttpRequest, obj: Batch | None = None) -> Any:
        """None: the page shows panels."""
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
                "acts": [
                    (act, number(batch.failed) if act is actions.RETRY and batch.failed else "")
                    for act in actions.possible(batch)
                    if self.may(request, act.permission, batch)
                ],
                "metadata": metadata(batch),
                "trail": trees.trail(batch, self.get_queryset(request)),
                "facts": _facts(batch),
            }
        return super().change_view(request, object_id, form_url, context)


def _facts(batch: Batch) -> list[tuple[str, str]]:
    """How the jobs of the batch run."""
    return [
        (_("Id"), str(batch.pk)),
        (_("Queue"), batch.queue),
        (_("Timeout"), duration(timedelta(seconds=batch.timeout))),
        (_("Attempts"), str(batch.max_attempts)),
        (_("Backoff"), backoff(batch) or _("none")),
        *((label, text) for label, text in _limits(batch) if text),
        (_("Round"), str(batch.round)),
    ]


def _limits(batch: Batch) -> list[tuple[str, str]]:
    """What only some batches have; empty text for those that have not."""
    return [
        (_("No retry after"), ", ".join(json.loads(batch.no_retry))),
        (_("Concurrency"), str(batch.concurrency or "")),
        (_("Failures allowed"), "" if batch.max_failures is None else str(batch.max_failures)),
        (_("Deadline"), duration(timedelta(seconds=batch.deadline)) if batch.deadline is not None else ""),
        (_("Key"), batch.key),
    ]
