"""Finds out why a batch isn't progressing, for the admin, the commands and the health check.

Most findings come from the rows. Redis is queried once, with short timeouts. If it is down, that is a finding too.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone
from django.utils.translation import gettext as _, ngettext

from .. import database
from ..conf import settings
from ..coordinator import lease
from ..models import Batch
from ..models.lease import Lease
from ..states import JobStatus
from ..transitions import frontier
from ..transport.probe import ProbeCache, ProbeResult, probe_workers
from .blocked_children import AwaitedBatches, named
from .finding import GRACE, Finding
from .formatting import duration, moment, number
from .progress import state
from .queues import MAX_ROWS, busy_queues, due_queues, jobs_in_flight

LEVELS = ("error", "warning", "info")
CLOCK_MARGIN = timedelta(seconds=5)
"""How far the clocks of this host and of the database may differ."""


def diagnose(batch: Batch) -> list[Finding]:
    """Returns what keeps a batch from ending, most severe first; nothing once it and its callbacks have ended."""
    if batch.deleting_at:
        advice = _("If the deletion was interrupted, delete it again to complete it.")
        return [Finding("deleting", "info", _("It is being deleted, in chunks."), advice)]
    if batch.finished_at and not batch.open_callbacks:
        return []
    now, awaited = timezone.now(), AwaitedBatches.of(batch)
    tree = [batch, *awaited.batches]
    due = due_queues(tree)
    needs = due | busy_queues(tree)
    probe = probe_workers(sorted({queue for _batch, queue in needs}))
    workers = _missing_workers(batch, awaited, needs, probe, now)
    blocking = [*redis_findings(probe), *coordinator_findings(now), *workers]
    findings = [*blocking, *_stopped(batch, now), *awaited.blocked(now), *_waiting(batch, now), *awaited.waiting_for()]
    is_due = any(key == batch.pk for key, _queue in due) and not batch.in_flight
    if is_due and not blocking and not batch.is_paused:
        findings.append(Finding("behind", "info", _("Its jobs are waiting behind jobs of other batches.")))
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def find_stuck(batches: Iterable[Batch], probe: ProbeCache | None = None) -> Iterator[tuple[Batch, list[Finding]]]:
    """Yields each batch that is stuck until someone intervenes, with its errors. Paused batches are not stuck."""
    probe, now = probe or ProbeCache(), timezone.now()
    everywhere = probe(frontier.queues())
    general = [*redis_findings(everywhere), *coordinator_findings(now)]
    # Only a queue without workers can block a batch. Usually there is none, and `due_queues` makes no query.
    without_workers = [queue for queue, count in everywhere.workers.items() if not count]
    for batch in batches:
        if state(batch) in ("paused", "deleting"):
            continue
        needs = due_queues([batch], without_workers) | busy_queues([batch])
        workers = probe(sorted({queue for _batch, queue in needs}))
        # Leave out the child batches that it waits for: they cost more queries, and are checked as batches themselves.
        if findings := [*general, *_missing_workers(batch, AwaitedBatches(), needs, workers, now)]:
            yield batch, findings


def active_coordinator() -> Lease | None:
    """Returns the lease of the active coordinator or, if there is none now, of the last one."""
    return database.related("Lease").filter(pk=lease.NAME).first()


def is_alive(holder: Lease, now: datetime) -> bool:
    """Whether the coordinator that holds the lease still renews it."""
    return holder.expires_at + CLOCK_MARGIN >= now


def redis_findings(probe: ProbeResult) -> Iterator[Finding]:
    """Yields what blocks every batch: Redis is down, or RQ's workers are suspended."""
    if probe.error:
        text = _("Redis does not answer (%(error)s).") % {"error": probe.error}
        yield Finding("redis", "error", text, _("No job can start. Jobs that were added are safe in the database."))
    if probe.is_suspended:
        yield Finding("suspended", "error", _("RQ's workers are suspended (rq suspend)."), _("Resume them: rq resume"))


def coordinator_findings(now: datetime) -> Iterator[Finding]:
    """Yields what blocks every batch: there is no active coordinator, or it uses other keys in Redis."""
    holder = active_coordinator()
    advice = _("Start one: manage.py batchworker")
    if holder is None:
        yield Finding("batchworker", "error", _("No batchworker has ever run here."), advice)
    elif not is_alive(holder, now):
        text = _("No batchworker has been seen since %(time)s.") % {"time": moment(holder.expires_at)}
        yield Finding("batchworker", "error", text, advice)
    elif text := lease.other_namespace(holder.namespace):
        yield Finding("namespace", "error", text, lease.SAME_NAMESPACE)


def _missing_workers(
    batch: Batch, awaited: AwaitedBatches, needs: set[tuple[UUID, str]], probe: ProbeResult, now: datetime
) -> Iterator[Finding]:
    """Yields a finding for each queue without a worker that the batch needs, or that a batch it waits for needs."""
    waiting = {b.pk: b for b in (batch, *awaited.batches) if b.created_at + GRACE < now}
    for queue in sorted(queue for queue, count in probe.workers.items() if not count):
        keys = sorted(key for key, needed in needs if needed == queue and key in waiting)
        advice = _("Start one: manage.py batchworker %(queue)s") % {"queue": queue}
        text = _("No worker listens on the queue “%(queue)s”.") % {"queue": queue}
        if batch.pk in keys:
            yield Finding("no_worker", "error", text, advice)
        elif keys:
            first = waiting[keys[0]]
            needed_by = _("%(batch)s needs one.") % {"batch": named(first, awaited.depth_of(first.pk))}
            yield Finding("no_worker", "error", f"{text} {needed_by}", advice, first.pk)


def _stopped(batch: Batch, now: datetime) -> Iterator[Finding]:
    """Yields a finding if the batch is overdue, cancelled, paused, not sealed, or being retried."""
    if not batch.finished_at:  # neither a cancel nor a pause stops the callbacks of an ended batch
        if batch.deadline_at and batch.deadline_at < now:
            text = _("It has been overdue since %(time)s.") % {"time": moment(batch.deadline_at)}
            allowed = timedelta(seconds=batch.deadline or 0)
            advice = _("Its deadline was %(duration)s.") % {"duration": duration(allowed)}
            yield Finding("overdue", "warning", text, advice)
        if batch.cancelled_at:
            text = _("It was cancelled at %(time)s. Running jobs finish first.") % {"time": moment(batch.cancelled_at)}
            yield Finding("cancelling", "info", text, batch.reason)
        elif batch.is_paused:
            yield Finding("paused", "warning", _("It is paused."), _("Resume it to continue."))
    if not batch.sealed_at and not batch.cancelled_at:
        quiet, limit = now - batch.grown_at, timedelta(seconds=settings().OPEN_TIMEOUT)
        text = _(
            "It has not been sealed: its creator is still adding jobs, or has died. The last job was added %(time)s"
            " ago."
        )
        advice = _("It will be cancelled if no job is added for %(duration)s. Seal it to let it end.")
        level, words = "warning" if quiet > GRACE else "info", {"time": duration(quiet), "duration": duration(limit)}
        yield Finding("open", level, text % words, advice % words)
    if batch.retry_position is not None:
        advice = _("If the retry was interrupted, the batchworker completes it.")
        yield Finding("retrying", "info", _("Its failed jobs are being retried, in chunks."), advice)


def _waiting(batch: Batch, now: datetime) -> Iterator[Finding]:
    """Yields findings about the jobs and callbacks that the batch waits for."""
    started = jobs_in_flight([batch]).filter(status=JobStatus.RUNNING, started_at__isnull=False)
    rows: Any = started.values_list("started_at", "worker", "position")[:MAX_ROWS]
    running = list(rows) if batch.in_flight else []
    if running:
        started_at, worker, position = min(running)
        text = ngettext(
            "%(count)s job is running: job %(position)s, for %(duration)s on worker %(worker)s.",
            "%(count)s jobs are running; the longest, job %(position)s, for %(duration)s on worker %(worker)s.",
            len(running),
        )
        words = {"position": position, "duration": duration(now - started_at), "worker": worker}
        yield Finding("running", "info", text % {"count": number(len(running)), **words})
    if (queued := batch.in_flight - len(running)) > 0:
        text = ngettext("%(count)s job is queued.", "%(count)s jobs are queued.", queued)
        yield Finding("queued", "info", text % {"count": number(queued)})
    if batch.pending > batch.in_flight:
        scheduled = database.jobs().filter(batch=batch, status=JobStatus.SCHEDULED).order_by("due_at")
        if next_due := scheduled.values_list("due_at", flat=True).first():
            text = _("The next job is scheduled for %(time)s.")
            yield Finding("scheduled", "info", text % {"time": moment(next_due)})
    if batch.finished_at and (left := batch.open_callbacks):
        text = ngettext("%(count)s callback has not ended.", "%(count)s callbacks have not ended.", left)
        yield Finding("callbacks", "info", text % {"count": number(left)})
