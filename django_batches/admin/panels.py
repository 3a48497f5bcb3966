"""What the page of a batch shows, panel by panel: gathered here once, drawn by the page and by its live updates."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _

from ..calls.masking import masked_value
from ..models import Batch, BatchJob, FailureGroup
from ..models.throughput import Pace, paces
from ..monitoring.diagnosis import diagnose
from ..monitoring.finding import Finding
from ..monitoring.formatting import duration, pauses
from ..monitoring.progress import snapshot
from ..states import JOB_ENDED, JobStatus
from . import actions, timeline, trees
from .counters import counters
from .job_rows import JobRow, light, rows_of

if TYPE_CHECKING:
    from .permissions import PermissionsMixin

GROUPS = 20
"""Groups of failures that are shown, the largest first."""
CALLBACKS = 30
"""Callbacks that are shown, the latest rounds first."""
LONGEST = 20_000
"""Characters of metadata that are shown."""
_FOLDER = "admin/django_batches/batch/panels"
_NAMES = ("progress", "why", "children", "timeline", "failures", "callbacks", "milestones")
PANELS = {name: f"{_FOLDER}/{name}.html" for name in _NAMES}


@dataclass(frozen=True)
class Milestone:
    """A step in the life of a batch."""

    name: str
    moment: datetime | None
    state: str = ""
    """failed, succeeded, cancelled, planned (its moment is still to come) or nothing: its colour."""
    note: str = ""


def panels(admin: "PermissionsMixin", request: HttpRequest, batch: Batch) -> dict[str, Any]:
    """Everything that the panels of a batch need; a constant number of queries."""
    now = timezone.now()
    pace = paces([batch], now).get(batch.pk, Pace())
    visible = admin.get_queryset(request)
    callbacks = rows_of(_callbacks(batch), now, visible)
    tree = trees.of(batch, visible, now)
    groups = list(batch.failure_groups.filter(count__gt=0).order_by("-count")[: GROUPS + 1])
    may_retry = admin.may(request, "retry", batch)
    return {
        "batch": batch,
        "admin_name": admin.admin_site.name,
        "shown": snapshot(batch, pace, now),
        "counters": counters(batch).values(),
        "tree": tree,
        "findings": _without_hidden(diagnose(batch), batch, visible),
        "timeline": timeline.draw(batch),
        "groups": groups[:GROUPS],
        "largest_group": _largest(groups),
        "has_more_groups": len(groups) > GROUPS,
        "callbacks": callbacks,
        "milestones": milestones(batch, callbacks),
        "may_retry": may_retry,
        "may_cancel": admin.may(request, "cancel", batch),
        "may_see_arguments": admin.may(request, "arguments", batch),
        "can_retry": may_retry and actions.RETRY.is_possible(actions.Target(batch)),
    }


def milestones(batch: Batch, callbacks: "Iterable[JobRow]") -> list[Milestone]:
    """Created, first start, first failure, end, callbacks: with what has not happened yet left open."""
    failure = None
    if batch.first_failure_id:
        # Not where it was retried while the batch ran: when it failed is not known any more.
        failed = BatchJob.objects.filter(pk=batch.first_failure_id, status=JobStatus.FAILED)
        failure = failed.values("finished_at", "error_type").first()
    found = [
        Milestone(_("Created"), batch.created_at),
        Milestone(_("Sealed"), batch.sealed_at),
        Milestone(_("First job started"), batch.started_at),
    ]
    if failure:
        note = failure["error_type"].rpartition(".")[2]
        found.append(Milestone(_("First failure"), failure["finished_at"], "failed", note))
    if batch.cancelled_at:
        found.append(Milestone(_("Cancel asked"), batch.cancelled_at, "cancelled", batch.reason))
    if batch.deadline_at:
        is_missed = batch.deadline_at < (batch.finished_at or timezone.now())
        note = _("missed") if is_missed else _("kept") if batch.finished_at else ""
        found.append(Milestone(_("Deadline"), batch.deadline_at, "failed" if is_missed else "planned", note))
    ended = ""
    if batch.finished_at:
        ended = duration(batch.finished_at - (batch.started_at or batch.created_at))
    found.append(Milestone(_("Ended"), batch.finished_at, str(batch.status) if batch.finished_at else "", ended))
    # Sorted by time, because a job can start before its batch is sealed; what has not happened stays at the end.
    found.sort(key=lambda step: (step.moment is None, step.moment.timestamp() if step.moment else 0))
    current = [row for row in callbacks if row.job.round == batch.round]
    if current and batch.finished_at:
        times = [row.job.finished_at for row in current if row.job.status in JOB_ENDED and row.job.finished_at]
        is_over = len(times) == len(current)
        state = "failed" if any(row.job.status == JobStatus.FAILED for row in current) else "succeeded"
        found.append(Milestone(_("Callbacks ended"), max(times) if is_over else None, state if is_over else ""))
    return found


def _without_hidden(findings: list[Finding], batch: Batch, visible: "QuerySet[Batch]") -> list[Finding]:
    """What is said of batches below it that the user may not see becomes one sentence without their names."""
    others = {finding.batch_id for finding in findings if finding.batch_id and finding.batch_id != batch.pk}
    hidden = others - set(visible.filter(pk__in=others).values_list("pk", flat=True)) if others else others
    if not hidden:
        return findings
    told = [finding for finding in findings if finding.batch_id not in hidden]
    return [*told, Finding("hidden", "info", _("It waits for child batches that you may not see."))]


def metadata(batch: Batch) -> str:
    """The user's own data as text to read."""
    if not batch.metadata:
        return ""
    text = json.dumps(masked_value(batch.metadata), indent=2, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def backoff(batch: Batch) -> str:
    """The pauses between attempts in words."""
    return pauses(json.loads(batch.backoff))


def _callbacks(batch: Batch) -> list[BatchJob]:
    return list(light(batch.callbacks.all()).order_by("-round", "created_at", "event", "position")[:CALLBACKS])


def _largest(groups: list[FailureGroup]) -> int:
    return max((group.count for group in groups), default=1)
