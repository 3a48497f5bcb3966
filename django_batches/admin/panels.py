"""Collects the data of the panels on the page of a batch, for the page and its live updates."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _

from ..models import Batch, BatchJob
from ..models.throughput_and_eta import throughputs
from ..monitoring import tree
from ..monitoring.diagnosis import diagnose
from ..monitoring.finding import Finding
from ..monitoring.formatting import duration
from ..monitoring.progress import snapshot
from ..states import JOB_ENDED, JobStatus
from . import actions, related_batches, timeline
from .job_rows import JobRow, rows_of, without_payloads
from .permissions import PermissionsMixin

MAX_GROUPS = 20
"""How many failure groups are shown, the largest first."""
MAX_CALLBACKS = 30
"""How many callbacks are shown, those of the latest round first."""
PANELS = {
    name: f"admin/django_batches/batch/panels/{name}.html"
    for name in ("progress", "why", "children", "timeline", "failures", "callbacks", "milestones")
}
"""The templates of the panels."""


@dataclass(frozen=True)
class Milestone:
    name: str
    moment: datetime | None
    state: str = ""
    """The colour: failed, succeeded, cancelled, planned (the moment is in the future) or empty."""
    note: str = ""


def panels(admin: PermissionsMixin, request: HttpRequest, batch: Batch) -> dict[str, Any]:
    """Returns the template context of all panels, with a constant number of queries."""
    now = timezone.now()
    visible = admin.get_queryset(request)
    callbacks = without_payloads(batch.callbacks.all()).order_by("-round", "created_at", "event", "position")
    rows = rows_of(list(callbacks[:MAX_CALLBACKS]), now, visible)
    groups = list(batch.failure_groups.filter(count__gt=0).order_by("-count")[: MAX_GROUPS + 1])
    context = admin.job_context(request, batch)
    return {
        **context,
        "shown": snapshot(batch, throughputs([batch], now).get(batch.pk), now),
        "counters": counters(batch),
        "tree": related_batches.tree_of(batch, visible, now),
        "findings": _without_hidden(diagnose(batch), batch, visible),
        "timeline": timeline.draw(batch),
        "groups": groups[:MAX_GROUPS],
        "largest_group": max((group.count for group in groups), default=1),
        "has_more_groups": len(groups) > MAX_GROUPS,
        "callbacks": rows,
        "milestones": milestones(batch, rows),
        "can_retry": context["may_retry"] and actions.RETRY.is_possible(actions.Target(batch)),
    }


def counters(batch: Batch) -> list[tuple[str, str, int]]:
    """Returns (value of the status filter, label, number of jobs). The numbers add up to the total.

    There is no "waiting" if no job waits for child batches.
    """
    in_flight = min(batch.in_flight, batch.pending)
    left = batch.pending - in_flight
    # This query runs later than the one for the batch. Without `min`, "to run" could become negative.
    waiting = min(tree.waiting_jobs(batch).order_by().count(), left) if left else 0
    return [
        ("succeeded", _("succeeded"), batch.succeeded),
        ("failed", _("failed"), batch.failed),
        ("cancelled", _("cancelled"), batch.cancelled),
        ("in_flight", _("running or queued"), in_flight),
        *([("waiting", _("waiting for child batches"), waiting)] if waiting else []),
        ("to_run", _("to run"), left - waiting),
    ]


def milestones(batch: Batch, callbacks: Iterable[JobRow]) -> list[Milestone]:
    """Returns the milestones by time. Those that have not been reached come last."""
    found = [
        Milestone(_("Created"), batch.created_at),
        Milestone(_("Sealed"), batch.sealed_at),
        Milestone(_("First job started"), batch.started_at),
        *_first_failure(batch),
    ]
    if batch.cancelled_at:
        found.append(Milestone(_("Cancel requested"), batch.cancelled_at, "cancelled", batch.reason))
    if batch.deadline_at:
        is_missed = batch.deadline_at < (batch.finished_at or timezone.now())
        note = _("missed") if is_missed else _("met") if batch.finished_at else ""
        found.append(Milestone(_("Deadline"), batch.deadline_at, "failed" if is_missed else "planned", note))
    took = duration(batch.finished_at - (batch.started_at or batch.created_at)) if batch.finished_at else ""
    found.append(Milestone(_("Ended"), batch.finished_at, str(batch.status) if batch.finished_at else "", took))
    # A job can start before its batch is sealed.
    found.sort(key=lambda step: (step.moment is None, step.moment.timestamp() if step.moment else 0))
    return found + _callbacks_ended(batch, [row.job for row in callbacks if row.job.round == batch.round])


def _first_failure(batch: Batch) -> list[Milestone]:
    if not batch.first_failure_id:
        return []
    # A job that was retried while the batch ran no longer has the time of its failure.
    failed = BatchJob.objects.filter(pk=batch.first_failure_id, status=JobStatus.FAILED)
    return [
        Milestone(_("First failure"), moment, "failed", error_type.rpartition(".")[2])
        for moment, error_type in failed.values_list("finished_at", "error_type")
    ]


def _callbacks_ended(batch: Batch, callbacks: list[BatchJob]) -> list[Milestone]:
    if not callbacks or not batch.finished_at:
        return []
    times = [job.finished_at for job in callbacks if job.status in JOB_ENDED and job.finished_at]
    if len(times) < len(callbacks):
        return [Milestone(_("Callbacks ended"), None)]
    has_failed = any(job.status == JobStatus.FAILED for job in callbacks)
    return [Milestone(_("Callbacks ended"), max(times), "failed" if has_failed else "succeeded")]


def _without_hidden(findings: list[Finding], batch: Batch, visible: "QuerySet[Batch]") -> list[Finding]:
    """Replaces the findings about batches that the user may not view by one that does not name them."""
    others = {finding.batch_id for finding in findings if finding.batch_id and finding.batch_id != batch.pk}
    hidden = others - set(visible.filter(pk__in=others).values_list("pk", flat=True)) if others else others
    if not hidden:
        return findings
    text = _("It is waiting for child batches that you do not have permission to view.")
    return [finding for finding in findings if finding.batch_id not in hidden] + [Finding("hidden", "info", text)]
