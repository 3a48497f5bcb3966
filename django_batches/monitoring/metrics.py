"""Metrics for Prometheus, by its own client library: `pip install "django-batches[prometheus]"`.

A custom collector: each scrape reads the counters of the batches that have not ended, and a few index probes; nothing
in it grows with the number of jobs. With an exporter of your own: `REGISTRY.register(BatchesCollector())`.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Case, CharField, Count, F, Q, Sum, Value, When
from django.utils import timezone
from redis import Redis
from redis.exceptions import RedisError

from .. import database
from ..coordinator import totals
from ..states import BATCH_ENDED, IN_FLIGHT
from ..transport.outcomes import Kind
from ..transport.probe import quick_client
from . import backlog
from .diagnosis import active_coordinator, is_there

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError:  # the extra is not installed: `text` says so
    Collector = object  # type: ignore[assignment,misc]
    is_available = False
else:
    is_available = True

if TYPE_CHECKING:
    from prometheus_client import Metric

MISSING = 'The metrics need prometheus_client: pip install "django-batches[prometheus]"'
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LOSSES = (Kind.KILLED, Kind.INTERRUPTED, Kind.MISSING)
_STATES = ("open", "running", "paused", "cancelling", "deleting")


def text() -> str:
    """All metrics in Prometheus' text format. Raises `ImproperlyConfigured` where its client library is missing."""
    if not is_available:
        raise ImproperlyConfigured(MISSING)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BatchesCollector())
    return generate_latest(registry).decode()


class BatchesCollector(Collector):
    """Reads the database and Redis at each scrape. Without Redis it tells what the database knows."""

    def describe(self) -> "Iterable[Metric]":
        """Nothing: or registering it would ask the database, where the process may just be starting."""
        return []

    def collect(self) -> "Iterator[Metric]":
        yield from _batches()
        yield _jobs()
        yield _due()
        holder = active_coordinator()
        yield GaugeMetricFamily(
            "django_batches_coordinator_up",
            "1 while a batchworker keeps the books.",
            value=int(holder is not None and is_there(holder, timezone.now())),
        )
        yield from _redis()


def _batches() -> "Iterator[Metric]":
    alive = GaugeMetricFamily(
        "django_batches_batches", "Batches that have not ended, by what they do.", labels=["status"]
    )
    status = Case(
        When(cancelled_at__isnull=False, then=Value("cancelling")),
        When(is_paused=True, then=Value("paused")),
        default=F("status"),
        output_field=CharField(),
    )
    found = database.batches().filter(finished_at=None).order_by().annotate(state=status).values_list("state")
    counts = dict(found.annotate(count=Count("pk")))
    counts["deleting"] = database.batches().filter(deleting_at__isnull=False).count()
    for name in _STATES:
        alive.add_metric([name], counts.get(name, 0))
    yield alive
    ended = GaugeMetricFamily(
        "django_batches_batches_ended_last_hour",
        "Batches that ended within the last hour, by status.",
        labels=["status"],
    )
    since = timezone.now() - timedelta(hours=1)
    for status_name in BATCH_ENDED:
        count = database.batches().filter(status=status_name, finished_at__gt=since, deleting_at=None).count()
        ended.add_metric([status_name.value], count)
    yield ended


def _jobs() -> "Metric":
    metric = GaugeMetricFamily(
        "django_batches_jobs",
        "Jobs of the batches that have not ended, by status; to_run: due, scheduled, or waiting for child batches.",
        labels=["status"],
    )
    names = ("pending", "succeeded", "failed", "cancelled", "in_flight")
    alive = database.batches().filter(finished_at=None)
    sums = alive.aggregate(**{f"all_{name}": Sum(name, default=0) for name in names})
    in_flight = database.jobs().filter(status__in=IN_FLIGHT, batch__isnull=False).order_by()
    counts = in_flight.aggregate(**{status.value: Count("pk", filter=Q(status=status)) for status in IN_FLIGHT})
    metric.add_metric(["to_run"], max(0, sums["all_pending"] - sums["all_in_flight"]))
    for status, count in counts.items():
        metric.add_metric([status], count)
    for name in ("succeeded", "failed", "cancelled"):
        metric.add_metric([name], sums[f"all_{name}"])
    return metric


def _due() -> "Metric":
    metric = GaugeMetricFamily(
        "django_batches_oldest_due_seconds",
        "Seconds for which the oldest row that could go to RQ waits: job, callback, or scheduled (its time has come).",
        labels=["kind"],
    )
    for kind, seconds in backlog.oldest_due(timezone.now()).items():
        metric.add_metric([kind], seconds)
    return metric


def _redis() -> "Iterator[Metric]":
    found: list[Metric] = []
    redis = None
    try:
        redis = quick_client()
        found = [*_stream(redis), *_totals(redis)]
    except (RedisError, OSError):
        pass
    finally:
        if redis is not None:
            redis.connection_pool.disconnect()
    yield GaugeMetricFamily("django_batches_redis_up", "1 where Redis answers.", value=int(bool(found)))
    yield from found


def _stream(redis: Redis) -> "Iterator[Metric]":
    stream = backlog.stream(redis)
    yield GaugeMetricFamily(
        "django_batches_outcome_stream_entries", "Outcomes that wait to be applied.", value=stream.entries
    )
    yield GaugeMetricFamily(
        "django_batches_outcome_stream_oldest_seconds", "Seconds for which the oldest of them waits.", value=stream.age
    )


def _totals(redis: Redis) -> "Iterator[Metric]":
    """They begin again at 0 where Redis is emptied, as counters may: `rate()` knows that."""
    counts = totals.read(redis)
    outcomes = CounterMetricFamily(
        "django_batches_outcomes", "Outcomes of runs that were applied, by kind; callbacks included.", labels=["kind"]
    )
    for kind in Kind:
        outcomes.add_metric([kind.value], counts.get(kind.value, 0))
    yield outcomes
    yield CounterMetricFamily(
        "django_batches_losses",
        "Runs that were lost: their worker was killed or its host lost, or it did not have the function.",
        value=sum(counts.get(kind.value, 0) for kind in _LOSSES),
    )
    yield CounterMetricFamily(
        "django_batches_repairs",
        "Batches whose counters differed from their rows and were repaired: there should be none.",
        value=counts.get(totals.REPAIRS, 0),
    )
