"""The list of batches: columns, search, filters, pages. No query that grows with the number of jobs."""

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import CharField, Q, QuerySet
from django.db.models.functions import Cast
from django.forms import Script
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from ..models import Batch, BatchJob
from ..monitoring import tree
from ..monitoring.progress import snapshots
from ..views import LIMIT
from .action_views import action, untied
from .confirmation import DEEPEST
from .filters import CreatedFilter, DeadlineFilter, FailuresFilter, InsideFilter, LevelFilter, MovesFilter, QueueFilter
from .permissions import PermissionsMixin
from .trees import Step


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts to `DEEPEST` at most: a COUNT(*) of a table of millions costs more than the page."""

    @cached_property
    def count(self) -> int:
        found: QuerySet[Batch] = self.object_list  # type: ignore[assignment]
        return found.order_by()[:DEEPEST].count()


class ListMixin(PermissionsMixin):
    list_display = ("name", "state", "bar", "failures", "time")
    list_display_links = ("name",)
    list_filter = (
        "status", LevelFilter, InsideFilter, QueueFilter, CreatedFilter, FailuresFilter, DeadlineFilter, MovesFilter,
    )  # fmt: skip
    list_per_page = 50
    list_max_show_all = LIMIT
    ordering = ("-pk",)
    paginator = BoundedPaginator
    search_fields = ("description",)
    search_help_text = _("Id of a batch (its end will do) or of a job, or words of the description")
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    actions = tuple(action(name) for name in ("retry", "cancel", "pause", "resume", "delete"))
    change_list_template = "admin/django_batches/batch/change_list.html"

    class Media:
        css = {"all": ["django_batches/batches.css"]}
        js = [Script("django_batches/batches.js", type="module")]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """By the filters alone: by any field, one could feel for what is masked, letter by letter."""
        filters = self.get_list_filter(request) if request else self.list_filter
        names = [each if isinstance(each, str) else getattr(each, "parameter_name", each) for each in filters]
        return any(lookup == name or lookup.startswith(f"{name}__") for name in names)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Gives each batch of the page what its columns show, from few queries for all of them."""
        changelist = super().get_changelist_instance(request)
        changelist.result_list = list(changelist.result_list)
        shown = snapshots(changelist.result_list)
        for batch in changelist.result_list:
            batch.shown = shown[str(batch.pk)]
        openers = tree.openers(changelist.result_list)
        owners = self.get_queryset(request).in_bulk({opener.owner_id for opener in openers.values()}) if openers else {}
        for batch in changelist.result_list:
            opener = openers.get(batch.pk)
            batch.step = Step(owners[opener.owner_id], opener) if opener and opener.owner_id in owners else None
        return changelist

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Batch]", search_term: str
    ) -> "tuple[QuerySet[Batch], bool]":
        term = search_term.strip()
        if by_id := _by_id(term):
            return queryset.annotate(id_text=Cast("pk", CharField())).filter(
                by_id | Q(description__icontains=term)
            ), False
        return super().get_search_results(request, queryset, search_term)

    @untied
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        title = capfirst(self.opts.verbose_name_plural)
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    @admin.display(description=_("batch, queue"))
    def name(self, batch: Batch) -> SafeString:
        shown, step = batch.description or "—", batch.step  # type: ignore[attr-defined]
        of = _("%(job)s of “%(batch)s”") % {"job": step.by, "batch": step.batch} if step else ""
        return format_html(
            '{} <span class="batch-sub"><span class="batch-id">{}</span> <span>{}</span>'
            '<span class="batch-sub__of">{}</span></span>',
            shown, str(batch.pk)[-8:], batch.queue, of,
        )  # fmt: skip

    @admin.display(description=_("status"))
    def state(self, batch: Batch) -> str:
        return self._cell("state", batch)

    @admin.display(description=_("progress"))
    def bar(self, batch: Batch) -> str:
        return self._cell("cell", batch)

    @admin.display(description=_("failed"))
    def failures(self, batch: Batch) -> SafeString:
        url = reverse(f"{self.admin_site.name}:django_batches_batch_jobs", args=[batch.pk])
        return format_html(
            '<a class="batch-failures" href="{}?status=failed" data-word="{}" data-batch="{}" data-batch-show="failed">'
            "{}</a>",
            url, _("failed"), batch.pk, self._shown(batch)["text"]["failed"],
        )  # fmt: skip

    @admin.display(description=_("time"))
    def time(self, batch: Batch) -> str:
        return self._cell("time", batch)

    def _cell(self, template: str, batch: Batch) -> str:
        live = reverse(f"{self.admin_site.name}:django_batches_batch_live")
        context = {"batch": batch, "shown": self._shown(batch), "live": live}
        return render_to_string(f"django_batches/{template}.html", context)

    def _shown(self, batch: Batch) -> dict[str, Any]:
        return batch.shown  # type: ignore[attr-defined,no-any-return]


def _by_id(term: str) -> Q | None:
    """The batch of an id: its own, the end of it, that of one of its jobs, or that of RQ's job."""
    parts = term.split("-")
    if term.startswith("batch-") and len(parts) == 4:
        term = parts[2]
    text = term.replace("-", "").lower()
    if not 4 <= len(text) <= 32 or set(text) - set("0123456789abcdef"):
        return None
    if len(text) == 32:
        key = UUID(text)
        owners = BatchJob.objects.filter(pk=key).values_list("batch", "callback_of").first() or ()
        return Q(pk__in=[key, *(owner for owner in owners if owner)])
    # PostgreSQL writes a key with hyphens, SQLite without: the last twelve characters are the same.
    return Q(id_text__endswith=text[-12:])
