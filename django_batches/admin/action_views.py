"""Buttons and actions: a confirmation page with counts, then the act, a LogEntry and a message."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connections, transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..database import foreign_keys
from ..exceptions import BatchError
from ..models import Batch
from ..monitoring.formatting import number
from ..transitions import deleting
from . import actions
from .actions import ACTS, Act, Target
from .confirmation import LABELS, ConfirmingMixin, newest
from .job_rows import members


def untied(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Large acts go in chunks, each a transaction; one around the request (ATOMIC_REQUESTS) would tie them together."""
    for alias in connections:  # a router may keep the batches in any
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


class ActingMixin(ConfirmingMixin):
    """Views and actions that change something: POST, CSRF, the permission, and the batch through `get_queryset`."""

    def get_urls(self) -> list[URLPattern]:
        act = path(
            "<uuid:object_id>/do/<slug:name>/",
            self.admin_site.admin_view(self.act_view),
            name="django_batches_batch_act",
        )
        return [act, *super().get_urls()]

    @untied
    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        try:
            return self.act_view(request, UUID(unquote(object_id)), actions.DELETE.name)
        except ValueError:
            raise Http404 from None

    @untied
    def act_view(self, request: HttpRequest, object_id: UUID, name: str) -> HttpResponse:
        """GET asks, POST does."""
        act, batch = ACTS.get(name), self.batch_of(request, object_id)
        if act is None:
            raise Http404
        if not self.may(request, act.permission, batch):
            raise PermissionDenied
        target = self.target_of(request, batch)
        if request.method == "POST":
            self.do(request, act, target)
            is_gone = act is actions.DELETE and not Batch.objects.filter(pk=batch.pk).exists()
            return HttpResponseRedirect(self.address("changelist") if is_gone else self.address("change", batch))
        return self.confirmation(request, act, target)

    def batch_of(self, request: HttpRequest, object_id: UUID) -> Batch:
        """The batch among those that the user may see; 404 for any other."""
        batch = self.get_queryset(request).filter(pk=object_id).first()
        if batch is None:
            raise Http404
        if not self.has_view_permission(request, batch):
            raise PermissionDenied
        return batch

    def target_of(self, request: HttpRequest, batch: Batch) -> Target:
        """The batch, or the job or group of failures of this batch that the query names."""
        given, job, group = request.GET, None, None
        if key := given.get("job"):
            try:
                job = members(batch).filter(pk=key).first()
            except (ValidationError, ValueError):
                job = None
            if job is None:
                raise Http404
        if "fingerprint" in given:
            mark = given["fingerprint"].replace("\0", "")
            group = batch.failure_groups.filter(fingerprint=mark).first()
            if group is None:
                raise Http404
        return Target(batch, job, group, _options(request))

    def do(self, request: HttpRequest, act: Act, target: Target) -> None:
        """Does it and says so; what is no longer possible, because somebody was quicker, does nothing."""
        asked = _whole_number(request.POST.get("asked")) or act.count(target)
        try:
            count, has_changed = self.perform(request, act, target)
        except BatchError as error:
            self.message_user(request, str(error), messages.ERROR)
            return
        left = target.batch.pending if act is actions.CANCEL else max(0, asked - count)
        self.message_user(request, act.say(count, left), messages.SUCCESS if has_changed else messages.WARNING)

    def perform(self, request: HttpRequest, act: Act, target: Target) -> tuple[int, bool]:
        """Does it, with a LogEntry where it changed something: how many jobs (or batches), and whether anything."""
        is_possible = act.is_possible(target)
        if act is actions.DELETE:
            if not is_possible:
                raise BatchError(_("This batch cannot be deleted: it or its callbacks have not ended."))
            # Whoever may delete batches may not therefore delete the project's rows, which a cascade would take along.
            if holder := foreign_keys.holder(deleting.tree(target.batch.pk)):
                refusal = _("%(field)s points to this batch, its jobs or a batch below it: delete those rows first.")
                raise BatchError(refusal % {"field": holder})
            # It is refused, if at all, when it begins; where this process dies later, the coordinator goes on.
            if deleting.begin(target.batch.pk):
                self.log_deletions(request, [target.batch])  # type: ignore[arg-type]
            return act.run(target), True
        count = act.run(target) if is_possible else 0
        # A cancel of a batch whose jobs all run ends none of them at once, and is one all the same.
        has_changed = bool(count) or (is_possible and act is actions.CANCEL)
        if has_changed:
            what = target.job or (target.group.error_type if target.group else "")
            words = [f"{act.label}:", str(what), act.say(count, 0)]
            self.log_change(request, target.batch, " ".join(filter(None, words)))
        return count, has_changed

    def act_on_many(self, request: HttpRequest, act: Act, queryset: "QuerySet[Batch]") -> HttpResponse | None:
        """An action of the list: asks first, then does it to each batch that it is possible and allowed for."""
        if "confirmed" not in request.POST:
            return self.confirmation_of_many(request, act, queryset)
        done = skipped = total = 0
        for key in list(newest(queryset).order_by("pk").values_list("pk", flat=True)):
            batch = queryset.filter(pk=key).first()
            if batch is None or not self.may(request, act.permission, batch):
                skipped += 1
                continue
            target = Target(batch, options=_options(request))
            if not act.is_possible(target):
                skipped += 1
                continue
            try:
                total += self.perform(request, act, target)[0]
                done += 1
            except BatchError as error:
                self.message_user(request, f"{batch}: {error}", messages.ERROR)
                skipped += 1
        of_batches = ngettext("%(count)s batch", "%(count)s batches", done) % {"count": number(done)}
        said = _("%(batches)s, %(skipped)s skipped.") % {"batches": of_batches, "skipped": number(skipped)}
        self.message_user(
            request, f"{act.label}: {said} {act.say(total, 0)}", messages.SUCCESS if done else messages.WARNING
        )
        return None


def action(name: str) -> Callable[..., HttpResponse | None]:
    """The action of the list for an act."""
    act = ACTS[name]

    def run(admin: ActingMixin, request: HttpRequest, queryset: "QuerySet[Batch]") -> HttpResponse | None:
        return admin.act_on_many(request, act, queryset)

    # By its name it takes the place of Django's own deletion, which loads every row that goes with a batch.
    run.__name__ = "delete_selected" if act is actions.DELETE else f"{name}_batches"
    run.short_description = LABELS[name]  # type: ignore[attr-defined]
    run.allowed_permissions = [act.permission]  # type: ignore[attr-defined]
    return run


def _options(request: HttpRequest) -> dict[str, Any]:
    """What the user chose; a cancel says who asked for it."""
    by = _("Cancelled by %(user)s.") % {"user": request.user.get_username()}
    reason = f"{by} {request.POST.get('reason', '').strip()[:500]}".replace("\0", "").strip()
    return {"include_cancelled": request.POST.get("include_cancelled") == "on", "reason": reason}


def _whole_number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 12 else 0
