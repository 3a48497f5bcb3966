"""The child batches that a batch waits for, and what stands in the way of one of those below it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models import F
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..states import Event
from . import tree
from .finding import FRESH, Finding
from .formatting import duration, number
from .progress import STATES, state

if TYPE_CHECKING:
    from ..models import Batch

FEW = 3
"""Child batches that are named one by one."""


@dataclass(frozen=True)
class Below:
    """The batches for which jobs and callbacks of a batch wait, level by level, at most `family.MOST` in all."""

    levels: "Sequence[list[Batch]]" = ()
    waited_for: int = 0
    """How many child batches it waits for itself."""

    @classmethod
    def of(cls, batch: "Batch") -> "Below":
        awaited = tree.awaited()
        opener = {"opener_position": F("parent__position"), "opener_event": F("parent__event")}
        levels = list(tree.levels(batch.pk, awaited.annotate(**opener)))
        count = len(levels[0]) if levels else 0
        return cls(levels, count if count < tree.MOST else tree.inside(awaited, [batch.pk]).count())

    @property
    def batches(self) -> "list[Batch]":
        return [batch for level in self.levels for batch in level]

    def depth_of(self, batch_id: UUID) -> int:
        """1 for its own child batches."""
        return next(depth for depth, level in enumerate(self.levels, 1) if any(b.pk == batch_id for b in level))

    def waits(self) -> list[Finding]:
        """What it waits for itself."""
        first = self.levels[0][:FEW] if self.levels else []
        findings = [Finding("children", "info", _waits(batch), batch_id=batch.pk) for batch in first]
        if more := self.waited_for - len(first):
            text = ngettext(
                "It waits for %(count)s more child batch.", "It waits for %(count)s more child batches.", more
            )
            findings.append(Finding("more_children", "info", text % {"count": number(more)}))
        return findings

    def stuck(self, now: datetime) -> list[Finding]:
        """Those below it that somebody has to look after."""
        found = list(self._stuck(now))
        more = len(found) - FEW
        if more <= 0:
            return found
        text = ngettext(
            "%(count)s more batch below it is paused or was never sealed.",
            "%(count)s more batches below it are paused or were never sealed.",
            more,
        )
        return [*found[:FEW], Finding("more_stuck", "warning", text % {"count": number(more)})]

    def _stuck(self, now: datetime) -> Iterator[Finding]:
        for depth, level in enumerate(self.levels, 1):
            for batch in level:
                if batch.finished_at or batch.cancelled_at:
                    continue
                words = {"batch": named(batch, depth)}
                if batch.is_paused:
                    advice = _("Resume it, and its jobs go on.")
                    yield Finding("child_paused", "warning", _("%(batch)s is paused.") % words, advice, batch.pk)
                elif not batch.sealed_at and now - batch.grown_at > FRESH:
                    words["time"] = duration(now - batch.grown_at)
                    text = _("%(batch)s was never sealed. Its last job came %(time)s ago.") % words
                    yield Finding("child_open", "warning", text, batch_id=batch.pk)


def named(batch: "Batch", depth: int) -> str:
    """A batch below, at the beginning of a sentence."""
    if depth == 1:
        return _("Its child batch “%(batch)s”") % {"batch": batch}
    return _("Batch “%(batch)s”, %(levels)s levels below,") % {"batch": batch, "levels": depth}


def _waits(batch: Any) -> str:
    words = {
        "batch": batch,
        "state": STATES[state(batch)],
        "done": number(batch.total - batch.pending),
        "total": number(batch.total),
        "position": batch.opener_position,
        "event": Event(batch.opener_event).label if batch.opener_event else "",
    }
    if batch.finished_at and batch.open_callbacks:
        words["how"] = _("%(state)s, its callbacks have not ended") % words
    else:
        words["how"] = _("%(state)s, %(done)s of %(total)s jobs") % words
    if batch.opener_event:
        return _("A %(event)s callback waits for its child batch “%(batch)s” (%(how)s).") % words
    return _("Job %(position)s waits for its child batch “%(batch)s” (%(how)s).") % words
