"""Metrics for Prometheus, with its client library: `pip install "django-batches[prometheus]"`.

A scrape reads the counters of unfinished batches and a few index entries; its cost does not grow with the number of
jobs. To use your own exporter: `REGISTRY.register(BatchesCollector())`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Case, CharField, Count, F, Q, Sum, Value, When
from django.utils import timezone
from redis.exceptions import RedisError

from .. import database
from ..coordinator import totals
from ..states import BATCH_ENDED, IN_FLIGHT
from ..transport import client, probe
from ..transport.outcomes import Kind
from . import backlog
from .diagnosis import active_coordinator, is_alive

try:
    from prometheus_client import CollectorRegistry, Metric, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError:  # the extra is not installed: `text` raises
    Collector = object  # type: ignore[assignment,misc]
    is_available = False
else:
    is_available = True

__all__ = ["BatchesCollector"]

MISSING = 'The metrics need prometheus_client: pip install "django-batches[prometheus]"'
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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
        """Returns no metrics, because registering must not query the database while the process is still starting."""
        return []

    def collect(self) -> "Iterator[Metric]":
        now = timezone.now()
        yield from _batches(now)
        yield from _jobs(now)
        holder = active_coordinator()
        is_up = int(holder is not None and is_alive(holder, now))
        yield GaugeMetricFamily("django_batches_coordinator_up", "1 while there is an active coordinator.", is_up)
        yield from _redis()


def _batches(now: datetime) -> "Iterator[Metric]":
    status = Case(
        When(cancelled_at__isnull=False, then=Value("cancelling")),
        When(is_paused=True, then=Value("paused")),
        default=F("status"),
        output_field=CharField(),
    )
    batches = database.batches()
    unfinished = batches.filter(finished_at=None).order_by().annotate(state=status).values_list("state")
    counts = dict.fromkeys(("open", "running", "paused", "cancelling", "deleting"), 0)
    counts |= dict(unfinished.annotate(count=Count("pk")))
    counts["deleting"] = batches.filter(deleting_at__isnull=False).count()
    text = "Batches that have not ended, by state."
    yield _labelled(GaugeMetricFamily, "django_batches_batches", text, "status", counts)
    recent = batches.filter(finished_at__gt=now - timedelta(hours=1), deleting_at=None)
    counts = {status.value: recent.filter(status=status).count() for status in BATCH_ENDED}
    text = "Batches that ended within the last hour, by status."
    yield _labelled(GaugeMetricFamily, "django_batches_batches_ended_last_hour", text, "status", counts)


def _jobs(now: datetime) -> "Iterator[Metric]":
    names = ("pending", "succeeded", "failed", "cancelled", "in_flight")
    unfinished = database.batches().filter(finished_at=None)
    sums = unfinished.aggregate(**{f"all_{name}": Sum(name, default=0) for name in names})
    in_flight = database.jobs().filter(status__in=IN_FLIGHT, batch__isnull=False).order_by()
    counts = {
        "to_run": max(0, sums["all_pending"] - sums["all_in_flight"]),
        **in_flight.aggregate(**{status.value: Count("pk", filter=Q(status=status)) for status in IN_FLIGHT}),
        **{name: sums[f"all_{name}"] for name in ("succeeded", "failed", "cancelled")},
    }
    text = "Jobs of the batches that have not ended, by status; to_run: due, scheduled, or waiting for child batches."
    yield _labelled(GaugeMetricFamily, "django_batches_jobs", text, "status", counts)
    text = "Seconds that the oldest due row has waited, by kind: job, callback, or scheduled (a job that is now due)."
    yield _labelled(GaugeMetricFamily, "django_batches_oldest_due_seconds", text, "kind", backlog.oldest_due(now))


def _redis() -> "Iterator[Metric]":
    found: list[Metric] = []
    with suppress(RedisError, OSError):
        redis = client.quick_client(probe.TIMEOUT)
        with closing(redis.connection_pool):
            found = [*_stream(*backlog.stream(redis)), *_totals(Counter(totals.read(redis)))]
    yield GaugeMetricFamily("django_batches_redis_up", "1 if Redis answers.", int(bool(found)))
    yield from found


def _stream(entries: int, age: float) -> "Iterator[Metric]":
    text = "Outcomes that have not been applied yet."
    yield GaugeMetricFamily("django_batches_outcome_stream_entries", text, entries)
    text = "Seconds since the oldest outcome in the stream was reported."
    yield GaugeMetricFamily("django_batches_outcome_stream_oldest_seconds", text, age)


def _totals(counts: Counter[str]) -> "Iterator[Metric]":
    """Yields the counters from Redis. They restart at 0 if Redis is emptied, which Prometheus' `rate()` handles."""
    text = "Outcomes that were applied, by kind; callbacks included."
    outcomes = {kind.value: counts[kind.value] for kind in Kind}
    yield _labelled(CounterMetricFamily, "django_batches_outcomes", text, "kind", outcomes)
    text = "Runs that were lost: the worker was killed, its host was lost, or it could not import the function."
    losses = sum(counts[kind.value] for kind in (Kind.KILLED, Kind.INTERRUPTED, Kind.MISSING))
    yield CounterMetricFamily("django_batches_losses", text, losses)
    text = "Batches whose counters differed from their rows and were repaired; should stay 0."
    yield CounterMetricFamily("django_batches_repairs", text, counts[totals.REPAIRS])


def _labelled(family: Any, name: str, text: str, label: str, values: Mapping[str, float]) -> "Metric":
    metric: Any = family(name, text, labels=[label])
    for value, count in values.items():
        metric.add_metric([value], count)
    return metric  # type: ignore[no-any-return]
