"""Why does a batch not move? One function, for the admin, the commands and the health check.

It answers quickly and never raises because Redis is away: the rows say most of it, and Redis is asked with short
timeouts, once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from .conf import settings
from .connection import Keys, client
from .coordinator import lease
from .states import BATCH_ENDED, JobStatus
from .transitions import dispatching, rows
from .wording import duration, moment, number

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from .models import Batch, BatchJob

TIMEOUT = 0.3
"""Seconds for each of connecting to Redis and its answer."""
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


@dataclass(frozen=True)
class Broker:
    """What Redis says about the workers of some queues."""

    error: str = ""
    """Why it could not be asked."""
    is_suspended: bool = False
    workers: dict[str, int] = field(default_factory=dict)
    """Workers that are alive, per queue."""


def why(batch: "Batch") -> list[Finding]:
    """What keeps a batch from ending, the gravest first; empty once it and its callbacks have ended."""
    if batch.finished_at and not batch.open_callbacks:
        return []
    if batch.status in BATCH_ENDED and not batch.finished_at:
        text = _("It is being deleted, in chunks.")
        return [Finding("deleting", "info", text, _("If that was cut off, delete it again: it goes on."))]
    now = timezone.now()
    queues = waiting_queues(batch)
    broker = ask(sorted({*queues, *running_queues(batch)}))
    findings = [*_machinery(batch, broker, queues, now), *_steering(batch, now), *_waiting(batch, broker, queues, now)]
    order = ("error", "warning", "info")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def ask(queues: Sequence[str]) -> Broker:
    """Asks Redis for the workers of the queues; two round trips with short timeouts."""
    redis = None
    try:
        redis = client(socket_connect_timeout=TIMEOUT, socket_timeout=TIMEOUT, retry=Retry(NoBackoff(), 0))
        keys = Keys()
        pipeline = redis.pipeline(transaction=False)
        pipeline.exists(f"{keys.RQ}:suspended")
        for queue in queues:
            pipeline.smembers(keys.workers_of(queue))
        suspended, *members = pipeline.execute()
        # The set keeps the names of workers whose host was lost; their record has run out.
        for names in members:
            # A key within our own: a user of Redis may be kept from all others.
            pipeline.exists(*(names or [f"{keys.own}:nobody"]))
        alive = pipeline.execute() if members else []
        return Broker("", bool(suspended), dict(zip(queues, alive, strict=True)))
    except (RedisError, OSError, ImproperlyConfigured) as error:
        return Broker(f"{type(error).__name__}: {error}")
    finally:
        if redis is not None:
            redis.connection_pool.disconnect()


def waiting_queues(batch: "Batch") -> list[str]:
    """The queues on which jobs of the batch wait for their place; index probes, whatever the number of jobs."""
    queues = dispatching.queues_with_jobs() if batch.pending > batch.in_flight else []
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


def in_flight(batch: "Batch") -> "QuerySet[BatchJob]":
    """The jobs of the batch that are in RQ. Without an order: PostgreSQL would walk the batch for it."""
    return rows.jobs().filter(batch=batch, status__in=[JobStatus.QUEUED, JobStatus.RUNNING]).order_by()


def _machinery(batch: "Batch", broker: Broker, queues: list[str], now: datetime) -> list[Finding]:
    """What is not there: Redis, a batchworker, workers."""
    findings = []
    if broker.error:
        text = _("Redis does not answer (%(error)s).") % {"error": broker.error}
        findings.append(
            Finding("redis", "error", text, _("No job can start. What has been added is safe in the rows."))
        )
    holder = rows.related("Lease").filter(pk=lease.NAME).values_list("expires_at", flat=True).first()
    start = _("Start one: manage.py batchworker")
    if holder is None:
        findings.append(Finding("batchworker", "error", _("No batchworker has ever run here."), start))
    elif holder + MARGIN < now:
        text = _("No batchworker has been seen since %(time)s.") % {"time": moment(holder)}
        findings.append(Finding("batchworker", "error", text, start))
    if broker.is_suspended:
        advice = _("Resume them: rq resume")
        findings.append(Finding("suspended", "error", _("RQ's workers have been suspended (rq suspend)."), advice))
    if not broker.error and batch.created_at + FRESH < now:
        findings += [_no_worker(queue) for queue, count in broker.workers.items() if not count]
    return findings


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
