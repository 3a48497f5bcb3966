"""Draws the timeline of a batch for an SVG: the jobs that ended in each period, with failures below the line."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Max, Min, Sum
from django.db.models.functions import TruncHour, TruncMinute
from django.utils import timezone
from django.utils.formats import time_format

from ..models import Batch
from ..models.aggregates import TimeBucket
from ..monitoring.formatting import moment, number

BUCKET = timedelta(seconds=TimeBucket.SECONDS)
MAX_COLUMNS = 60
HEIGHT, DEPTH = 100.0, 45.0
"""The space above the line, and the largest space below it, in SVG units."""
COLUMN = 10.0
"""The width of a column in SVG units."""
PER_BUCKET, PER_MINUTE = timedelta(hours=3), timedelta(days=4)
"""Up to these lengths of a batch, its buckets are read one by one or summed per minute; beyond, summed per hour."""


@dataclass(frozen=True)
class Column:
    """The jobs that ended in one period."""

    x: float
    bars: list[tuple[str, float, float]]
    """(status, y, height)"""
    counts: list[int]
    since: str
    until: str


@dataclass(frozen=True)
class Timeline:
    columns: list[Column]
    width: float
    height: float
    column_width: float
    starts: str
    ends: str
    peak: str
    """The largest number of jobs that ended in one column without failing."""
    each: timedelta


def draw(batch: Batch) -> Timeline | None:
    """Returns the timeline in at most `MAX_COLUMNS` columns, or None if no job has ended yet."""
    ends = batch.buckets.aggregate(first=Min("starts_at"), last=Max("starts_at"))
    if ends["first"] is None:
        return None
    first, last = ends["first"], ends["last"]
    each = BUCKET * -(-((last - first) // BUCKET + 1) // MAX_COLUMNS)
    return _layout(_count(_rows(batch, last - first), first, each), first, each)


def _rows(batch: Batch, length: timedelta) -> Iterable[tuple[Any, ...]]:
    names = ("succeeded", "failed", "cancelled")
    if length <= PER_BUCKET:
        return batch.buckets.order_by("starts_at").values_list("starts_at", *names)
    trunc: Callable[[str], Any] = TruncMinute if length <= PER_MINUTE else TruncHour
    grouped = batch.buckets.annotate(since=trunc("starts_at")).order_by("since").values("since")
    sums = {f"sum_{name}": Sum(name) for name in names}
    return grouped.annotate(**sums).values_list("since", *sums)


def _count(rows: Iterable[tuple[Any, ...]], first: datetime, each: timedelta) -> list[list[int]]:
    """Counts the succeeded, failed and cancelled jobs of each column."""
    counts: list[list[int]] = []
    for since, *ended in rows:
        index = max(0, (since - first) // each)
        counts += [[0, 0, 0] for _ in range(index + 1 - len(counts))]
        counts[index] = [known + more for known, more in zip(counts[index], ended, strict=True)]
    return counts


def _layout(counts: list[list[int]], first: datetime, each: timedelta) -> Timeline:
    highest = max((succeeded + cancelled for succeeded, _, cancelled in counts), default=0) or 1
    deepest = max((failed for _, failed, _ in counts), default=0)
    # Use the same scale on both sides of the line.
    scale = HEIGHT / max(highest, deepest * HEIGHT / DEPTH)
    columns = []
    for index, (succeeded, failed, cancelled) in enumerate(counts):
        # Draw even a single job with a visible bar.
        up = max(1.5, succeeded * scale) if succeeded else 0.0
        grey = max(1.5, cancelled * scale) if cancelled else 0.0
        down = max(3.0, failed * scale) if failed else 0.0
        bars = [("succeeded", HEIGHT - up, up), ("cancelled", HEIGHT - up - grey, grey), ("failed", HEIGHT + 1, down)]
        bars = [(status, round(y, 2), round(height, 2)) for status, y, height in bars]
        since, until = _clock(first + index * each), _clock(first + (index + 1) * each)
        columns.append(Column(index * COLUMN + 1, bars, [succeeded, failed, cancelled], since, until))
    return Timeline(
        columns,
        width=max(len(counts), 12) * COLUMN,
        column_width=COLUMN - 2,
        height=round(HEIGHT + 1 + max(8.0, deepest * scale), 2),
        starts=_day_and_clock(first),
        ends=_day_and_clock(first + len(counts) * each),
        peak=number(highest),
        each=each,
    )


def _local(when: datetime) -> datetime:
    return timezone.localtime(when) if timezone.is_aware(when) else when


def _clock(when: datetime) -> str:
    return time_format(_local(when), "H:i:s")


def _day_and_clock(when: datetime) -> str:
    is_today = _local(when).date() == _local(timezone.now()).date()
    return _clock(when) if is_today else moment(when)
