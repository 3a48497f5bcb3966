"""The JSON for live updates: one request for all batches of a page."""

from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, JsonResponse
from django.template.loader import render_to_string
from django.urls import URLPattern, path
from django.views.decorators.cache import never_cache

from ..monitoring.progress import snapshots
from ..views import ids_of
from .action_views import ActingMixin
from .panels import PANELS, panels


class LiveMixin(ActingMixin):
    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        urls = [
            path("live/", view(never_cache(self.live_view)), name="django_batches_batch_live"),
            path("<uuid:object_id>/live/", view(never_cache(self.live_page)), name="django_batches_batch_live_page"),
        ]
        return [*urls, *super().get_urls()]

    def live_view(self, request: HttpRequest) -> JsonResponse:
        """The batches of `?id=…&id=…` that the user may view."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        batches = self.get_queryset(request).filter(pk__in=ids_of(request))
        return JsonResponse({"batches": snapshots([b for b in batches if self.has_view_permission(request, b)])})

    def live_page(self, request: HttpRequest, object_id: UUID) -> JsonResponse:
        """One batch, with the HTML of the panels of its page."""
        batch = self.batch_of(request, object_id)
        context = panels(self, request, batch)
        html = {name: render_to_string(template, context, request) for name, template in PANELS.items()}
        below = context["tree"].shown if context["tree"] else {}
        return JsonResponse({"batches": {**below, str(batch.pk): context["shown"]}, "panels": html})
