"""The JSON that moves the bars: one request for all batches that a page shows."""

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
        mine = [
            path("live/", view(never_cache(self.live_view)), name="django_batches_batch_live"),
            path("<uuid:object_id>/live/", view(never_cache(self.live_page)), name="django_batches_batch_live_page"),
        ]
        return [*mine, *super().get_urls()]

    def live_view(self, request: HttpRequest) -> JsonResponse:
        """`?id=…&id=…`: those of the batches that the user may see."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        batches = self.get_queryset(request).filter(pk__in=ids_of(request))
        return JsonResponse({"batches": snapshots([b for b in batches if self.has_view_permission(request, b)])})

    def live_page(self, request: HttpRequest, object_id: UUID) -> JsonResponse:
        """One batch, with the panels of its page drawn anew."""
        batch = self.batch_of(request, object_id)
        context = panels(self, request, batch)
        drawn = {name: render_to_string(template, context, request) for name, template in PANELS.items()}
        shown = {str(batch.pk): context["shown"]}
        if context["tree"]:
            shown = {**context["tree"].shown, **shown}
        return JsonResponse({"batches": shown, "panels": drawn})
