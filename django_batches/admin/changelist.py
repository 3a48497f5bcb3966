"""The changelist of batches: columns, search, filters and pages. No query gets slower with the number of jobs."""

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.forms import Script
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils.functional import cached_property
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from ..models import Batch, BatchJob
from ..monitoring import tree
from ..monitoring.progress import snapshots
from ..monitoring.search import digits_of, id_is_or_ends_with
from ..views import LIMIT
from .action_views import changelist_action, non_atomic
from .confirmation import MAX_BATCHES
from .filters import FILTERS
from .permissions import PermissionsMixin
from .related_batches import Related


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts at most `MAX_BATCHES`: a COUNT(*) of millions of rows costs more than the page."""

    @cached_property
    def count(self) -> int:
        batches: QuerySet[Batch] = self.object_list  # type: ignore[assignment]
        return batches.order_by()[:MAX_BATCHES].count()


def _column(name: str, label: Any) -> Any:
    """Creates a column with its own template, for batches that `get_changelist_instance` has prepared."""

    @admin.display(description=label)
    def column(self: Any, batch: Any) -> str:
        context = {"batch": batch, "shown": batch.shown, "admin_name": self.admin_site.name}
        return render_to_string(f"admin/django_batches/batch/columns/{name}.html", context)

    return column


class ListMixin(PermissionsMixin):
    list_display = ("name", "state", "bar", "failures", "time")
    list_display_links = ("name",)
    list_filter = FILTERS
    list_per_page = 50
    list_max_show_all = LIMIT
    ordering = ("-pk",)
    paginator = BoundedPaginator
    search_fields = ("description",)
    search_help_text = _("Search by batch ID (or its last digits), job ID or description.")
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    actions = tuple(changelist_action(name) for name in ("retry", "cancel", "pause", "resume", "delete"))
    change_list_template = "admin/django_batches/batch/change_list.html"

    class Media:
        css = {"all": ["django_batches/batches.css"]}
        js = [Script("django_batches/batches.js", type="module")]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Allows only the filters: arbitrary lookups would leak masked values character by character."""
        filters = self.get_list_filter(request) if request else self.list_filter
        names = [each if isinstance(each, str) else getattr(each, "parameter_name", each) for each in filters]
        return any(lookup == name or lookup.startswith(f"{name}__") for name in names)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Adds what the columns show to each batch of the page, with a few queries for all of them."""
        changelist = super().get_changelist_instance(request)
        batches = changelist.result_list = list(changelist.result_list)
        shown, openers = snapshots(batches), tree.openers(batches)
        parents = {opener.owner_id for opener in openers.values()}
        visible = self.get_queryset(request).in_bulk(parents) if parents else {}
        for batch in batches:
            opener = openers.get(batch.pk)
            parent = visible.get(opener.owner_id) if opener else None
            batch.shown = shown[str(batch.pk)]
            batch.opened_in = Related(parent, opener) if opener and parent else None
        return changelist

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Batch]", search_term: str
    ) -> "tuple[QuerySet[Batch], bool]":
        if by_id := _by_id(search_term.strip()):
            return queryset.filter(by_id | Q(description__icontains=search_term.strip())), False
        return super().get_search_results(request, queryset, search_term)

    @non_atomic
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        title = capfirst(self.opts.verbose_name_plural)
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    name = _column("name", _("batch, queue"))
    state = _column("state", _("status"))
    bar = _column("bar", _("progress"))
    failures = _column("failures", _("failed"))
    time = _column("time", _("time"))


def _by_id(term: str) -> Q | None:
    """Finds a batch by its ID, by the end of it, or by the ID of one of its jobs or of a job in RQ."""
    parts = term.split("-")
    if term.startswith("batch-") and len(parts) == 4:
        term = parts[2]
    digits = digits_of(term)
    if len(digits) == 32:
        key = UUID(digits)
        owners = BatchJob.objects.filter(pk=key).values_list("batch", "callback_of").first() or ()
        return Q(pk__in=[key, *(owner for owner in owners if owner)])
    return id_is_or_ends_with(digits) if digits else None
