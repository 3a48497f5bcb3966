"""The timeline of a batch as geometry for an SVG: jobs ended per stretch of time, failures apart."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.db.models import Max, Min, Sum
from django.db.models.functions import TruncHour, TruncMinute
from django.utils import timezone
from django.utils.formats import time_format

from ..models import TimeBucket
from ..monitoring.formatting import moment, number

if TYPE_CHECKING:
    from ..models import Batch

STRETCH = timedelta(seconds=TimeBucket.SECONDS)
MOST = 60
"""Columns that are drawn at most."""
UP, DOWN = 100.0, 45.0
"""Units of height that what succeeded takes above the line, and that what failed may take below it."""
COLUMN = 10.0
"""Units of width of a column."""
FINEST, FINE = timedelta(hours=3), timedelta(days=4)
"""Up to these lengths the rows are read one by one, and per minute; beyond, per hour: some thousands at most."""


@dataclass(frozen=True)
class Column:
    """One stretch of time, its coordinates as text for SVG, which knows no decimal comma."""

    x: str
    width: str
    succeeded_y: str
    succeeded_height: str
    cancelled_y: str
    cancelled_height: str
    failed_height: str
    counts: tuple[str, str, str]
    since: str
    until: str
    failed: int
    cancelled: int


@dataclass(frozen=True)
class Timeline:
    columns: list[Column]
    view_box: str
    middle: str
    width: str
    height: str
    starts: str
    ends: str
    peak: str
    """The most jobs that ended in one column."""
    each: timedelta
    """How long a column is."""


def draw(batch: "Batch") -> Timeline | None:
    """The timeline of a batch, in at most 60 columns; None before the first job has ended."""
    ends = batch.buckets.aggregate(first=Min("starts_at"), last=Max("starts_at"))
    if ends["first"] is None:
        return None
    first, last = ends["first"], ends["last"]
    each = STRETCH * -(-((last - first) // STRETCH + 1) // MOST)
    counts = _gather(_rows(batch, last - first), first, each)
    return _geometry(counts, first, each)


def _rows(batch: "Batch", length: timedelta) -> Iterable[tuple[Any, ...]]:
    names = ("succeeded", "failed", "cancelled")
    if length <= FINEST:
        return batch.buckets.order_by("starts_at").values_list("starts_at", *names)
    trunc: Callable[[str], Any] = TruncMinute if length <= FINE else TruncHour
    grouped = batch.buckets.annotate(since=trunc("starts_at")).order_by("since").values("since")
    return grouped.annotate(**{f"sum_{name}": Sum(name) for name in names}).values_list(
        "since", *(f"sum_{name}" for name in names)
    )


def _gather(rows: Iterable[tuple[Any, ...]], first: datetime, each: timedelta) -> list[list[int]]:
    counts: list[list[int]] = []
    for since, *ended in rows:
        index = max(0, (since - first) // each)
        counts += [[0, 0, 0] for _ in range(index + 1 - len(counts))]
        counts[index] = [known + more for known, more in zip(counts[index], ended, strict=True)]
    return counts


def _geometry(counts: list[list[int]], first: datetime, each: timedelta) -> Timeline:
    highest = max((done + cancelled for done, _, cancelled in counts), default=0) or 1
    deepest = max((failed for _, failed, _ in counts), default=0)
    # Failures have the same scale as long as they can be seen with it.
    scale = max(highest, deepest * UP / DOWN)
    below = max(8.0, UP * deepest / scale)
    columns = []
    places = max(len(counts), 12)
    for index, (done, failed, cancelled) in enumerate(counts):
        up, grey = UP * done / scale, UP * cancelled / scale
        down = max(3.0 if failed else 0.0, UP * failed / scale)
        up, grey = (max(1.5, up) if done else 0.0), (max(1.5, grey) if cancelled else 0.0)
        columns.append(
            Column(
                x=_text(index * COLUMN + 1), width=_text(COLUMN - 2),
                succeeded_y=_text(UP - up), succeeded_height=_text(up),
                cancelled_y=_text(UP - up - grey), cancelled_height=_text(grey), failed_height=_text(down),
                counts=(number(done), number(failed), number(cancelled)),
                since=_clock(first + index * each), until=_clock(first + (index + 1) * each),
                failed=failed, cancelled=cancelled,
            )
        )  # fmt: skip
    width = _text(places * COLUMN)
    return Timeline(
        columns, f"0 0 {width} {_text(UP + 1 + below)}", _text(UP + 1), width, _text(UP + 1 + below),
        _ends(first), _ends(first + len(counts) * each), number(highest), each,
    )  # fmt: skip


def _text(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _local(moment: datetime) -> datetime:
    return timezone.localtime(moment) if timezone.is_aware(moment) else moment


def _clock(moment: datetime) -> str:
    return time_format(_local(moment), "H:i:s")


def _ends(when: datetime) -> str:
    is_today = _local(when).date() == _local(timezone.now()).date()
    return _clock(when) if is_today else moment(when)
