"""Metrics for Prometheus, with its client library: `pip install "django-batches[prometheus]"`.

A scrape reads the counters of unfinished batches and a few index entries; its cost does not grow with the number of
jobs. To use your own exporter: `REGISTRY.register(BatchesCollector())`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Case, CharField, Count, F, Q, Sum, Value, When
from django.utils import timezone
from redis import Redis
from redis.exceptions import RedisError

from .. import database
from ..coordinator import totals
from ..states import BATCH_ENDED, IN_FLIGHT
from ..transport import probe
from ..transport.client import quick_client
from ..transport.outcomes import Kind
from . import backlog
from .diagnosis import active_coordinator, is_alive

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError:  # without the extra, `text` raises
    Collector = object  # type: ignore[assignment,misc]
    is_available = False
else:
    is_available = True

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["BatchesCollector"]

MISSING = 'The metrics need prometheus_client: pip install "django-batches[prometheus]"'
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LOSSES = (Kind.KILLED, Kind.INTERRUPTED, Kind.MISSING)
_STATES = ("open", "running", "paused", "cancelling", "deleting")


def text() -> str:
    """All metrics in Prometheus' text format. Raises `ImproperlyConfigured` if its client library is missing."""
    if not is_available:
        raise ImproperlyConfigured(MISSING)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BatchesCollector())
    return generate_latest(registry).decode()


class BatchesCollector(Collector):
    """Reads the database and Redis at each scrape. If Redis is down, it returns what the database has."""

    def describe(self) -> "Iterable[Metric]":
        """Nothing: registering must not query the database while the process may still be starting."""
        return []

    def collect(self) -> "Iterator[Metric]":
        now = timezone.now()
        yield from _batches(now)
        yield _jobs()
        yield _gauge(
            "django_batches_oldest_due_seconds",
            "Seconds for which the oldest due row has waited: job, callback, or scheduled (a job whose time has come).",
            "kind", backlog.oldest_due(now),
        )  # fmt: skip
        holder = active_coordinator()
        is_up = holder is not None and is_alive(holder, now)
        yield GaugeMetricFamily(
            "django_batches_coordinator_up", "1 while there is an active coordinator.", value=int(is_up)
        )
        yield from _redis()


def _batches(now: datetime) -> "Iterator[Metric]":
    status = Case(
        When(cancelled_at__isnull=False, then=Value("cancelling")),
        When(is_paused=True, then=Value("paused")),
        default=F("status"),
        output_field=CharField(),
    )
    unfinished = database.batches().filter(finished_at=None).order_by().annotate(state=status).values_list("state")
    counts = {**dict.fromkeys(_STATES, 0), **dict(unfinished.annotate(count=Count("pk")))}
    counts["deleting"] = database.batches().filter(deleting_at__isnull=False).count()
    yield _gauge("django_batches_batches", "Batches that have not ended, by state.", "status", counts)
    recent = database.batches().filter(finished_at__gt=now - timedelta(hours=1), deleting_at=None)
    yield _gauge(
        "django_batches_batches_ended_last_hour", "Batches that ended within the last hour, by status.", "status",
        {status.value: recent.filter(status=status).count() for status in BATCH_ENDED},
    )  # fmt: skip


def _jobs() -> "Metric":
    names = ("pending", "succeeded", "failed", "cancelled", "in_flight")
    unfinished = database.batches().filter(finished_at=None)
    sums = unfinished.aggregate(**{f"all_{name}": Sum(name, default=0) for name in names})
    in_flight = database.jobs().filter(status__in=IN_FLIGHT, batch__isnull=False).order_by()
    return _gauge(
        "django_batches_jobs",
        "Jobs of the batches that have not ended, by status; to_run: due, scheduled, or waiting for child batches.",
        "status",
        {
            "to_run": max(0, sums["all_pending"] - sums["all_in_flight"]),
            **in_flight.aggregate(**{status.value: Count("pk", filter=Q(status=status)) for status in IN_FLIGHT}),
            **{name: sums[f"all_{name}"] for name in ("succeeded", "failed", "cancelled")},
        },
    )


def _redis() -> "Iterator[Metric]":
    found: list[Metric] = []
    with suppress(RedisError, OSError):
        redis = quick_client(probe.TIMEOUT)
        with closing(redis.connection_pool):
            found = [*_stream(redis), *_totals(redis)]
    yield GaugeMetricFamily("django_batches_redis_up", "1 if Redis answers.", value=int(bool(found)))
    yield from found


def _stream(redis: Redis) -> "Iterator[Metric]":
    stream = backlog.stream(redis)
    yield GaugeMetricFamily(
        "django_batches_outcome_stream_entries", "Outcomes that have not been applied yet.", value=stream.entries
    )
    yield GaugeMetricFamily(
        "django_batches_outcome_stream_oldest_seconds", "Seconds since the oldest of them was reported.",
        value=stream.age,
    )  # fmt: skip


def _totals(redis: Redis) -> "Iterator[Metric]":
    """Counters. They restart at 0 if Redis is emptied, which `rate()` handles."""
    counts = totals.read(redis)
    outcomes = CounterMetricFamily(
        "django_batches_outcomes", "Outcomes that were applied, by kind; callbacks included.", labels=["kind"]
    )
    for kind in Kind:
        outcomes.add_metric([kind.value], counts.get(kind.value, 0))
    yield outcomes
    yield CounterMetricFamily(
        "django_batches_losses",
        "Runs that were lost: the worker was killed, its host was lost, or it could not import the function.",
        value=sum(counts.get(kind.value, 0) for kind in _LOSSES),
    )
    yield CounterMetricFamily(
        "django_batches_repairs",
        "Batches whose counters differed from their rows and were repaired; should stay 0.",
        value=counts.get(totals.REPAIRS, 0),
    )


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> "Metric":
    metric = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        metric.add_metric([key], value)
    return metric
