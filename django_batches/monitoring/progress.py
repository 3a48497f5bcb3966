"""The progress of a batch, formatted for the admin, the template tag, the commands and the JSON view.

It comes from the counters of the batch and its time buckets, never from its jobs. The ETA is computed in
`models.throughput_and_eta`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _, gettext_lazy, pgettext

from ..models import Batch
from ..models.throughput_and_eta import Throughput, eta, throughputs
from ..states import BatchStatus
from .formatting import duration, number, rate_text

WIDTH = 1_000
"""Length of a bar, in units."""
MIN_WIDTH = 14
"""Length of the shortest segment, in units. It makes one failure in a million jobs visible."""
STATES = {
    **dict(BatchStatus.choices),
    "paused": gettext_lazy("paused"),
    "cancelling": gettext_lazy("being cancelled"),
    "deleting": gettext_lazy("being deleted"),
}


@dataclass(frozen=True)
class Segment:
    """A segment of a bar; `x` and `width` are in units, see `WIDTH`."""

    name: str
    count: int
    x: int
    width: int


def state(batch: Batch) -> str:
    """Returns what the badge shows: `paused`, `cancelling` or `deleting`, or else the status."""
    if batch.deleting_at:
        return "deleting"
    if batch.cancelled_at and not batch.finished_at:
        return "cancelling"
    return "paused" if batch.is_paused and not batch.finished_at else str(batch.status)


def segments(batch: Batch) -> list[Segment]:
    """Returns the segments of the batch's bar. The empty rest of the bar stands for jobs that wait."""
    counts = {
        "succeeded": batch.succeeded, "failed": batch.failed, "cancelled": batch.cancelled,
        "in_flight": min(batch.in_flight, batch.pending),
    }  # fmt: skip
    total = max(batch.total, 1)
    widths = {name: max(MIN_WIDTH, WIDTH * count // total) if count else 0 for name, count in counts.items()}
    largest = max(widths, key=lambda name: widths[name])
    widths[largest] -= max(0, sum(widths.values()) - WIDTH)
    if batch.total and not batch.pending:  # fill the gap that rounding left
        widths[largest] += WIDTH - sum(widths.values())
    starts = accumulate(widths.values(), initial=0)
    return [Segment(name, counts[name], x, widths[name]) for name, x in zip(widths, starts, strict=False)]


def timing(batch: Batch, throughput: Throughput, now: datetime) -> str:
    """Formats how long the batch took or, if it has not ended, the time left or how long it has been running."""
    if batch.finished_at:
        return duration(batch.finished_at - (batch.started_at or batch.created_at))
    if (left := eta(batch, throughput)) is not None:
        return _("%(duration)s left") % {"duration": duration(left, rough=True)}
    if batch.started_at:
        return _("for %(duration)s") % {"duration": duration(now - batch.started_at, rough=True)}
    return pgettext("a batch", "not started")


def summary(batch: Batch) -> str:
    texts = {
        "succeeded": _("%(count)s succeeded"), "failed": _("%(count)s failed"),
        "cancelled": _("%(count)s cancelled"), "pending": _("%(count)s pending"),
    }  # fmt: skip
    shown = [name for name in texts if name == "succeeded" or getattr(batch, name)]
    return ", ".join(texts[name] % {"count": number(getattr(batch, name))} for name in shown)


def snapshot(batch: Batch, throughput: Throughput | None = None, now: datetime | None = None) -> dict[str, Any]:
    """Returns what the JSON views send for a batch: the numbers, and the texts that the page shows."""
    throughput, now = throughput or Throughput(), now or timezone.now()
    left, shown = eta(batch, throughput), state(batch)
    percent = int(batch.progress * 100)  # rounded down, so that 100 means all jobs
    overdue = pgettext("a batch", "ended late") if batch.finished_at else pgettext("a batch", "overdue")
    return {
        "id": str(batch.pk),
        "status": str(batch.status),
        "state": shown,
        "is_over": bool(batch.finished_at and not batch.open_callbacks),
        **{name: getattr(batch, name) for name in ("total", "pending", "succeeded", "failed", "cancelled")},
        "progress": round(batch.progress, 4),
        "percent": percent,
        "is_overdue": batch.is_overdue,
        "eta_seconds": round(left.total_seconds()) if left is not None else None,
        "segments": [[segment.name, segment.x, segment.width] for segment in segments(batch)],
        "text": {
            "state": str(STATES[shown]),
            "done": f"{number(batch.total - batch.pending)} / {number(batch.total)}",
            "percent": _("%(percent)d %%") % {"percent": percent},
            "failed": number(batch.failed) if batch.failed else "",
            "timing": timing(batch, throughput, now),
            "overdue": overdue if batch.is_overdue else "",
            "left": duration(left, rough=True) if left is not None else "",
            "rate": rate_text(throughput.per_second) if throughput.is_significant else "",
            "summary": summary(batch),
        },
    }


def snapshots(batches: Sequence[Batch]) -> dict[str, dict[str, Any]]:
    """Returns the snapshots of several batches by id, with one query."""
    now = timezone.now()
    found = throughputs(batches, now)
    return {str(batch.pk): snapshot(batch, found.get(batch.pk), now) for batch in batches}
