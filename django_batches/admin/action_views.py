"""The views of the actions. They ask for confirmation, perform the action, add a LogEntry, and show a message."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import connections, transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path
from django.utils.translation import gettext as _, ngettext

from ..database import foreign_keys
from ..exceptions import BatchError
from ..models import Batch
from ..monitoring.formatting import number
from ..transitions import deleting
from . import actions
from .actions import ACTIONS, Action, Target
from .confirmation import ConfirmingMixin, newest
from .job_rows import jobs_and_callbacks


def non_atomic(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Exempts a view from ATOMIC_REQUESTS, which would run all chunks of a large action in one transaction."""
    for alias in connections:  # a database router may store the batches in any database
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


class ActingMixin(ConfirmingMixin):
    """Views that check the user's permission and find the batch in `get_queryset`."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.act_view)
        return [path("<uuid:object_id>/do/<slug:name>/", view, name="django_batches_batch_act"), *super().get_urls()]

    @non_atomic
    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        return self.act_view(request, unquote(object_id), actions.DELETE.name)

    @non_atomic
    def act_view(self, request: HttpRequest, object_id: UUID | str, name: str) -> HttpResponse:
        """GET shows the confirmation page, POST performs the action."""
        action, batch = ACTIONS.get(name), self.batch_of(request, object_id)
        if action is None:
            raise Http404
        if not self.may(request, action.permission, batch):
            raise PermissionDenied
        target = self.target_of(request, batch)
        if request.method != "POST":
            return self.confirmation(request, action, target)
        self.do(request, action, target)
        is_gone = action is actions.DELETE and not Batch.objects.filter(pk=batch.pk).exists()
        return HttpResponseRedirect(self.address("changelist") if is_gone else self.address("change", batch))

    def batch_of(self, request: HttpRequest, object_id: UUID | str) -> Batch:
        """Returns the batch if the user may view it. Raises `Http404` or `PermissionDenied` otherwise."""
        batch = self.get_object(request, str(object_id))
        if batch is None:
            raise Http404
        if not self.has_view_permission(request, batch):
            raise PermissionDenied
        return batch

    def target_of(self, request: HttpRequest, batch: Batch) -> Target:
        """Returns the batch, or the job or failure group of this batch that the query string names."""
        query, job, group = request.GET, None, None
        if key := query.get("job"):
            job = get_object_or_404(jobs_and_callbacks([batch], key))
        if "fingerprint" in query:
            group = get_object_or_404(batch.failure_groups, fingerprint=query["fingerprint"].replace("\0", ""))
        return Target(batch, job, group, **_options(request))

    def do(self, request: HttpRequest, action: Action, target: Target) -> None:
        """Performs the action and adds a message. Changes nothing if the action is no longer possible."""
        expected = parse_number(request.POST.get("expected")) or action.count(target)
        try:
            count, has_changed = self.perform(request, action, target)
        except BatchError as error:
            self.message_user(request, str(error), messages.ERROR)
            return
        rest = target.batch.pending if action is actions.CANCEL else max(0, expected - count)
        level = messages.SUCCESS if has_changed else messages.WARNING
        self.message_user(request, action.message(count, rest), level)

    def perform(self, request: HttpRequest, action: Action, target: Target) -> tuple[int, bool]:
        """Performs the action, and logs it if it changed something.

        Returns the number of jobs (or batches) changed, and whether anything changed. Raises `BatchError`.
        """
        is_possible = action.is_possible(target)
        if action is actions.DELETE:
            return self._delete(request, target, is_possible), True
        count = action.run(target) if is_possible else 0
        # Cancelling a batch whose jobs are all running cancels no job at once, but still changes the batch.
        has_changed = bool(count) or (is_possible and action is actions.CANCEL)
        if has_changed:
            subject = target.job or (target.group.error_type if target.group else "")
            parts = [f"{action.label}:", str(subject), action.message(count, 0)]
            self.log_change(request, target.batch, " ".join(filter(None, parts)))
        return count, has_changed

    def _delete(self, request: HttpRequest, target: Target, is_possible: bool) -> int:
        if not is_possible:
            raise BatchError(_("This batch cannot be deleted: it or its callbacks have not ended."))
        # A cascade would delete rows of the project, which the permission to delete batches does not cover.
        if holder := foreign_keys.reference(deleting.tree(target.batch.pk)):
            refusal = _("%(field)s references this batch, its jobs or a batch below it. Delete those rows first.")
            raise BatchError(refusal % {"field": holder})
        # Only the first step can be refused. If this process dies after it, the coordinator completes the deletion.
        if deleting.begin_deletion(target.batch.pk):
            self.log_deletions(request, [target.batch])  # type: ignore[arg-type]
        return actions.DELETE.run(target)

    def act_on_many(self, request: HttpRequest, action: Action, queryset: "QuerySet[Batch]") -> HttpResponse | None:
        """A changelist action: asks for confirmation, then acts on each batch that allows it."""
        if "confirmed" not in request.POST:
            return self.confirmation_of_many(request, action, queryset)
        done = skipped = total = 0
        for key in list(newest(queryset).order_by("pk").values_list("pk", flat=True)):
            batch = queryset.filter(pk=key).first()
            target = Target(batch, **_options(request)) if batch else None
            if target is None or not self.may(request, action.permission, batch) or not action.is_possible(target):
                skipped += 1
                continue
            try:
                total += self.perform(request, action, target)[0]
                done += 1
            except BatchError as error:
                self.message_user(request, f"{batch}: {error}", messages.ERROR)
                skipped += 1
        batches = ngettext("%(count)s batch", "%(count)s batches", done) % {"count": number(done)}
        summary = _("%(batches)s, %(skipped)s skipped.") % {"batches": batches, "skipped": number(skipped)}
        level = messages.SUCCESS if done else messages.WARNING
        self.message_user(request, f"{action.label}: {summary} {action.message(total, 0)}", level)
        return None


def changelist_action(name: str) -> Callable[..., HttpResponse | None]:
    action = ACTIONS[name]

    def run(admin: ActingMixin, request: HttpRequest, queryset: "QuerySet[Batch]") -> HttpResponse | None:
        return admin.act_on_many(request, action, queryset)

    # This name replaces Django's own action, which would load every related row.
    run.__name__ = "delete_selected" if action is actions.DELETE else f"{name}_batches"
    run.short_description = action.changelist_label  # type: ignore[attr-defined]
    run.allowed_permissions = [action.permission]  # type: ignore[attr-defined]
    return run


def parse_number(text: str | None) -> int | None:
    """A non-negative integer of at most 9 digits from a request; None for anything else."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else None


def _options(request: HttpRequest) -> dict[str, Any]:
    """Returns the options that the user chose. The reason for a cancel names the user."""
    by = _("Cancelled by %(user)s.") % {"user": request.user.get_username()}
    reason = f"{by} {request.POST.get('reason', '').strip()[:500]}".replace("\0", "").strip()
    return {"include_cancelled": request.POST.get("include_cancelled") == "on", "reason": reason}
