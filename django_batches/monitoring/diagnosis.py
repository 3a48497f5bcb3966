"""Why does a batch not move? One function, for the admin, the commands and the health check.

It answers quickly and never raises because Redis is away: the rows say most of it, and Redis is asked with short
timeouts, once.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from .. import database
from ..conf import settings
from ..coordinator import lease
from ..states import JobStatus
from ..transitions import frontier
from ..transport.probe import ProbeCache, ProbeResult, ask
from .blocked_children import Below, named
from .finding import FRESH, Finding
from .formatting import duration, moment, number
from .progress import state
from .queues import in_flight, to_run, used

if TYPE_CHECKING:
    from ..models import Batch, Lease

__all__ = ["Finding", "active_coordinator", "in_flight", "is_there", "stuck", "to_run", "why"]

MARGIN = timedelta(seconds=5)
"""By how much the clocks of this machine and of the database may differ."""


def why(batch: "Batch", asked: ProbeCache | None = None) -> list[Finding]:
    """What keeps a batch from ending, the gravest first; empty once it and its callbacks have ended."""
    if batch.deleting_at:
        text = _("It is being deleted, in chunks.")
        return [Finding("deleting", "info", text, _("If that was cut off, delete it again: it goes on."))]
    if batch.finished_at and not batch.open_callbacks:
        return []
    now, below = timezone.now(), Below.of(batch)
    everyone = [batch, *below.batches]
    to_start = to_run(everyone)
    needs = to_start | used(everyone)
    broker = (asked or ask)(sorted({queue for _, queue in needs}))
    machinery = [*_everywhere(broker, now), *_deserted(batch, below, needs, broker, now)]
    findings = [*machinery, *_steering(batch, now), *below.stuck(now), *_waiting(batch, now), *below.waits()]
    is_due = any(key == batch.pk for key, _ in to_start) and not batch.in_flight
    if is_due and not machinery and not batch.is_paused:
        findings.append(Finding("behind", "info", _("Its jobs wait for their place behind those of other batches.")))
    order = ("error", "warning", "info")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def stuck(batches: "Iterable[Batch]", asked: ProbeCache | None = None) -> "Iterator[tuple[Batch, list[Finding]]]":
    """Those of the batches that will not move until somebody does something that nobody has done yet, and why.

    Not the paused ones: that was somebody's wish.
    """
    asked, now = asked or ProbeCache(), timezone.now()
    said = asked(frontier.queues())
    everywhere = _everywhere(said, now)
    # Only where nobody works it matters who waits there: mostly nothing is asked per batch.
    deserted = [queue for queue, count in said.workers.items() if not count]
    for batch in batches:
        if state(batch) in ("paused", "deleting"):
            continue
        needs = to_run([batch], deserted) | used([batch])
        broker = asked(sorted({queue for _, queue in needs}))
        # Not what it waits for: that costs more, and is never an error.
        findings = [*everywhere, *_deserted(batch, Below(), needs, broker, now), *_steering(batch, now)]
        if errors := [finding for finding in findings if finding.level == "error"]:
            yield batch, errors


def active_coordinator() -> "Lease | None":
    """Who keeps the books, or kept them last."""
    return database.related("Lease").filter(pk=lease.NAME).first()


def is_there(holder: "Lease", now: datetime) -> bool:
    """Whether it has been seen lately."""
    return holder.expires_at + MARGIN >= now


def _everywhere(broker: ProbeResult, now: datetime) -> list[Finding]:
    """What is not there, for any batch: Redis, a batchworker, workers that may work."""
    findings = []
    if broker.error:
        text = _("Redis does not answer (%(error)s).") % {"error": broker.error}
        findings.append(
            Finding("redis", "error", text, _("No job can start. What has been added is safe in the rows."))
        )
    holder = active_coordinator()
    start = _("Start one: manage.py batchworker")
    if holder is None:
        findings.append(Finding("batchworker", "error", _("No batchworker has ever run here."), start))
    elif not is_there(holder, now):
        text = _("No batchworker has been seen since %(time)s.") % {"time": moment(holder.expires_at)}
        findings.append(Finding("batchworker", "error", text, start))
    elif text := lease.other_namespace(holder.namespace):
        findings.append(Finding("namespace", "error", text, lease.SAME_NAMESPACE))
    if broker.is_suspended:
        advice = _("Resume them: rq resume")
        findings.append(Finding("suspended", "error", _("RQ's workers have been suspended (rq suspend)."), advice))
    return findings


def _deserted(
    batch: "Batch", below: Below, needs: set[tuple[UUID, str]], broker: ProbeResult, now: datetime
) -> list[Finding]:
    """The queues without a worker on which it has jobs, or a batch that it waits for."""
    waiting = {b.pk: b for b in (batch, *below.batches) if b.created_at + FRESH < now}
    findings = []
    for queue in sorted(queue for queue, count in broker.workers.items() if not count):
        keys = sorted(key for key, needed in needs if needed == queue and key in waiting)
        advice = _("Start one: manage.py batchworker %(queue)s") % {"queue": queue}
        text = _("No worker works on the queue “%(queue)s”.") % {"queue": queue}
        if batch.pk in keys:
            findings.append(Finding("no_worker", "error", text, advice))
        elif keys:
            first = waiting[keys[0]]
            needing = _("%(batch)s needs one.") % {"batch": named(first, below.depth_of(first.pk))}
            findings.append(Finding("no_worker", "error", f"{text} {needing}", advice, first.pk))
    return findings


def _steering(batch: "Batch", now: datetime) -> list[Finding]:
    """What somebody has asked for, or not yet done."""
    findings = []
    if batch.deadline_at and batch.deadline_at < now and not batch.finished_at:
        given = _("It was given %(duration)s.") % {"duration": duration(timedelta(seconds=batch.deadline or 0))}
        text = _("It is overdue since %(time)s.") % {"time": moment(batch.deadline_at)}
        findings.append(Finding("overdue", "warning", text, given))
    # Once it has ended, what is left are its callbacks, which no cancel or pause holds.
    if batch.cancelled_at and not batch.finished_at:
        text = _("Its cancel was asked for at %(time)s: jobs that run finish first.") % {
            "time": moment(batch.cancelled_at)
        }
        findings.append(Finding("cancelling", "info", text, batch.reason))
    elif batch.is_paused and not batch.finished_at:
        findings.append(Finding("paused", "warning", _("It is paused."), _("Resume it, and its jobs go on.")))
    if not batch.sealed_at and not batch.cancelled_at:
        text = _("It was never sealed: its creator still adds jobs, or has died. The last one came %(time)s ago.") % {
            "time": duration(now - batch.grown_at)
        }
        advice = _(
            "It is cancelled once nothing was added for %(duration)s. Seal it to let it end with what it has."
        ) % {"duration": duration(timedelta(seconds=settings().OPEN_TIMEOUT))}
        level = "warning" if now - batch.grown_at > FRESH else "info"
        findings.append(Finding("open", level, text, advice))
    if batch.retry_position is not None:
        text = _("Its failed jobs are being put back, in chunks.")
        findings.append(Finding("retrying", "info", text, _("The batchworker goes on with it if it was cut off.")))
    return findings


def _waiting(batch: "Batch", now: datetime) -> list[Finding]:
    """What it waits for."""
    findings = []
    running = in_flight([batch]).filter(status=JobStatus.RUNNING) if batch.in_flight else database.jobs().none()
    found: list[tuple[datetime, str, int]] = [
        (started_at, worker, position)
        for started_at, worker, position in running.values_list("started_at", "worker", "position")[:1_000]
        if started_at
    ]
    if found:
        started_at, worker, position = min(found)
        text = ngettext(
            "%(count)s job runs: job %(position)s, for %(duration)s on worker %(worker)s.",
            "%(count)s jobs run; the longest, job %(position)s, for %(duration)s on worker %(worker)s.",
            len(found),
        ) % {
            "count": number(len(found)), "position": position, "duration": duration(now - started_at), "worker": worker,
        }  # fmt: skip
        findings.append(Finding("running", "info", text))
    queued = batch.in_flight - len(found)
    if queued > 0:
        text = ngettext("%(count)s job is in its queue.", "%(count)s jobs are in their queue.", queued)
        findings.append(Finding("queued", "info", text % {"count": number(queued)}))
    next_due = _next_due(batch) if batch.pending > batch.in_flight else None
    if next_due:
        text = _("The next job is scheduled for %(time)s.") % {"time": moment(next_due)}
        findings.append(Finding("scheduled", "info", text))
    if batch.finished_at and batch.open_callbacks:
        text = ngettext(
            "%(count)s callback has not ended.", "%(count)s callbacks have not ended.", batch.open_callbacks
        )
        findings.append(Finding("callbacks", "info", text % {"count": number(batch.open_callbacks)}))
    return findings


def _next_due(batch: "Batch") -> datetime | None:
    scheduled = database.jobs().filter(batch=batch, status=JobStatus.SCHEDULED)
    return scheduled.order_by("due_at").values_list("due_at", flat=True).first()
