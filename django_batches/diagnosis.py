"""Why does a batch not move? One function, for the admin, the commands and the health check.

It answers quickly and never raises because Redis is away: the rows say most of it, and Redis is asked with short
timeouts, once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from .broker import Asked, Broker, ask
from .conf import settings
from .coordinator import lease
from .progress import state
from .states import BATCH_ENDED, JOB_ENDED, JobStatus
from .transitions import dispatching, rows
from .wording import duration, moment, number

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from .models import Batch, BatchJob, Lease

FRESH = timedelta(seconds=15)
"""So long after it was opened a batch may wait for workers that learn of a new queue."""
MARGIN = timedelta(seconds=5)
"""By how much the clocks of this machine and of the database may differ."""


@dataclass(frozen=True)
class Finding:
    """One reason why a batch does not move, or one thing that it waits for."""

    code: str
    level: str
    """error: it will not move until somebody does something; warning: somebody has stopped it; info: it waits."""
    text: str
    advice: str = ""


def why(batch: "Batch", asked: Asked | None = None) -> list[Finding]:
    """What keeps a batch from ending, the gravest first; empty once it and its callbacks have ended."""
    if batch.finished_at and not batch.open_callbacks:
        return []
    if batch.status in BATCH_ENDED and not batch.finished_at:
        text = _("It is being deleted, in chunks.")
        return [Finding("deleting", "info", text, _("If that was cut off, delete it again: it goes on."))]
    now = timezone.now()
    queues = waiting_queues(batch)
    broker = _broker(batch, queues, asked or ask)
    findings = [
        *_everywhere(broker, now), *_deserted(batch, broker, now),
        *_steering(batch, now), *_waiting(batch, broker, queues, now),
    ]  # fmt: skip
    order = ("error", "warning", "info")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def stuck(batches: "Iterable[Batch]", asked: Asked | None = None) -> "Iterator[tuple[Batch, list[Finding]]]":
    """Those of the batches that will not move until somebody does something that nobody has done yet, and why.

    Not the paused ones: that was somebody's wish.
    """
    asked, now = asked or Asked(), timezone.now()
    said = asked(dispatching.queues_with_jobs())
    everywhere = _everywhere(said, now)
    # Only where nobody works it matters who waits there: mostly nothing is asked per batch.
    deserted = [queue for queue, count in said.workers.items() if not count]
    for batch in batches:
        if state(batch) in ("paused", "deleting"):
            continue
        broker = _broker(batch, waiting_queues(batch, deserted), asked)
        # Not what it waits for: that costs more, and is never an error.
        findings = [*everywhere, *_deserted(batch, broker, now), *_steering(batch, now)]
        if errors := [finding for finding in findings if finding.level == "error"]:
            yield batch, errors


def _broker(batch: "Batch", waiting: list[str], asked: Callable[[Sequence[str]], Broker]) -> Broker:
    """What Redis says of the queues on which anything of the batch waits or runs."""
    return asked(sorted({*waiting, *running_queues(batch), *callback_queues(batch)}))


def waiting_queues(batch: "Batch", among: list[str] | None = None) -> list[str]:
    """The queues on which jobs of the batch wait for their place; index probes, whatever the number of jobs."""
    if batch.pending <= batch.in_flight:
        return []
    queues = dispatching.queues_with_jobs() if among is None else among
    if not queues:
        return []
    table, params = rows.values({"queue": "text"}, [[queue] for queue in queues])
    found = rows.execute(
        f"SELECT v_queue FROM {table} WHERE EXISTS (SELECT 1 FROM {rows.JOB} WHERE status = 'created'"
        " AND batch_id = %s AND queue = v_queue)",
        [*params, rows.parameter(batch.pk)],
    )
    return sorted(queue for (queue,) in found)


def running_queues(batch: "Batch") -> set[str]:
    """The queues on which jobs of the batch are in RQ."""
    if not batch.in_flight:
        return set()
    return set(in_flight(batch).values_list("queue", flat=True)[:1_000])


def callback_queues(batch: "Batch") -> set[str]:
    """The queues of its callbacks that have not ended."""
    if not batch.open_callbacks:
        return set()
    return set(rows.jobs().filter(callback_of=batch).exclude(status__in=JOB_ENDED).values_list("queue", flat=True))


def keeper() -> "Lease | None":
    """Who keeps the books, or kept them last."""
    return rows.related("Lease").filter(pk=lease.NAME).first()


def is_there(holder: "Lease", now: datetime) -> bool:
    """Whether it has been seen lately."""
    return holder.expires_at + MARGIN >= now


def in_flight(batch: "Batch") -> "QuerySet[BatchJob]":
    """The jobs of the batch that are in RQ. Without an order: PostgreSQL would walk the batch for it."""
    return rows.jobs().filter(batch=batch, status__in=[JobStatus.QUEUED, JobStatus.RUNNING]).order_by()


def _everywhere(broker: Broker, now: datetime) -> list[Finding]:
    """What is not there, for any batch: Redis, a batchworker, workers that may work."""
    findings = []
    if broker.error:
        text = _("Redis does not answer (%(error)s).") % {"error": broker.error}
        findings.append(
            Finding("redis", "error", text, _("No job can start. What has been added is safe in the rows."))
        )
    holder = keeper()
    start = _("Start one: manage.py batchworker")
    if holder is None:
        findings.append(Finding("batchworker", "error", _("No batchworker has ever run here."), start))
    elif not is_there(holder, now):
        text = _("No batchworker has been seen since %(time)s.") % {"time": moment(holder.expires_at)}
        findings.append(Finding("batchworker", "error", text, start))
    if broker.is_suspended:
        advice = _("Resume them: rq resume")
        findings.append(Finding("suspended", "error", _("RQ's workers have been suspended (rq suspend)."), advice))
    return findings


def _deserted(batch: "Batch", broker: Broker, now: datetime) -> list[Finding]:
    """The queues of the batch on which nobody works."""
    if broker.error or batch.created_at + FRESH >= now:
        return []
    return [_no_worker(queue) for queue, count in broker.workers.items() if not count]


def _no_worker(queue: str) -> Finding:
    text = _("No worker works on the queue “%(queue)s”.") % {"queue": queue}
    advice = _("Start one: manage.py batchworker %(queue)s") % {"queue": queue}
    return Finding("no_worker", "error", text, advice)


def _steering(batch: "Batch", now: datetime) -> list[Finding]:
    """What somebody has asked for, or not yet done."""
    findings = []
    if batch.cancelled_at:
        text = _("Its cancel was asked for at %(time)s: jobs that run finish first.") % {
            "time": moment(batch.cancelled_at)
        }
        findings.append(Finding("cancelling", "info", text, batch.reason))
    elif batch.is_paused:
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


def _waiting(batch: "Batch", broker: Broker, queues: list[str], now: datetime) -> list[Finding]:
    """What it waits for."""
    findings = []
    running = in_flight(batch).filter(status=JobStatus.RUNNING) if batch.in_flight else rows.jobs().none()
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
    due = _next_due(batch) if batch.pending > batch.in_flight else None
    if due:
        text = _("The next attempt is scheduled for %(time)s.") % {"time": moment(due)}
        findings.append(Finding("scheduled", "info", text))
    if queues and not broker.error and not batch.in_flight and not batch.is_paused:
        findings.append(Finding("waiting", "info", _("Its jobs wait for their place behind those of other batches.")))
    if batch.finished_at and batch.open_callbacks:
        text = ngettext(
            "%(count)s callback has not ended.", "%(count)s callbacks have not ended.", batch.open_callbacks
        )
        findings.append(Finding("callbacks", "info", text % {"count": number(batch.open_callbacks)}))
    return findings


def _next_due(batch: "Batch") -> datetime | None:
    scheduled = rows.jobs().filter(batch=batch, status=JobStatus.SCHEDULED)
    return scheduled.order_by("due_at").values_list("due_at", flat=True).first()
