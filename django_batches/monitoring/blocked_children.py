"""Finds the child batches that a batch waits for, and those of them that are blocked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import F
from django.utils.translation import gettext as _, ngettext

from .. import database
from ..models import Batch
from ..states import Event, JobStatus
from . import tree
from .finding import GRACE, Finding
from .formatting import duration, number
from .progress import STATES, state

MAX_NAMED = 3
"""How many child batches the findings name. The others are only counted."""


@dataclass(frozen=True)
class AwaitedBatches:
    """The child batches that a batch waits for, those that these wait for, and so on; at most `tree.MAX_BATCHES`."""

    levels: Sequence[list[Batch]] = ()
    child_count: int = 0

    @classmethod
    def of(cls, batch: Batch) -> "AwaitedBatches":
        awaited = database.batches().filter(is_awaited=True, parent__status=JobStatus.WAITING)
        with_opener = awaited.annotate(opener_position=F("parent__position"), opener_event=F("parent__event"))
        levels = list(tree.levels(batch.pk, with_opener))
        count = len(levels[0]) if levels else 0
        return cls(levels, count if count < tree.MAX_BATCHES else tree.child_batches(awaited, [batch.pk]).count())

    @property
    def batches(self) -> list[Batch]:
        return [batch for level in self.levels for batch in level]

    def depth_of(self, batch_id: UUID) -> int:
        """Returns the level of a batch in the tree: 1 for a direct child batch."""
        return next(depth for depth, level in enumerate(self.levels, 1) if any(b.pk == batch_id for b in level))

    def waiting_for(self) -> Iterator[Finding]:
        """Yields findings about the first child batches that the batch itself waits for, and the number of others."""
        first = self.levels[0][:MAX_NAMED] if self.levels else []
        for batch in first:
            yield Finding("children", "info", _waits_for(batch), batch_id=batch.pk)
        if more := self.child_count - len(first):
            text = ngettext(
                "It waits for %(count)s more child batch.", "It waits for %(count)s more child batches.", more
            )
            yield Finding("more_children", "info", text % {"count": number(more)})

    def blocked(self, now: datetime) -> list[Finding]:
        """Returns findings about the batches, at any level, that are paused or not sealed."""
        levels = enumerate(self.levels, 1)
        found = [finding for depth, level in levels for batch in level if (finding := _blocked(batch, depth, now))]
        more = len(found) - MAX_NAMED
        if more <= 0:
            return found
        text = ngettext(
            "%(count)s more batch in its tree is paused or not sealed.",
            "%(count)s more batches in its tree are paused or not sealed.",
            more,
        )
        return [*found[:MAX_NAMED], Finding("more_stuck", "warning", text % {"count": number(more)})]


def named(batch: Batch, depth: int) -> str:
    """Names a batch of the tree, as the subject of a finding. A direct child batch has depth 1."""
    if depth == 1:
        return _("Its child batch “%(batch)s”") % {"batch": batch}
    return _("Its descendant “%(batch)s” (%(levels)s levels down)") % {"batch": batch, "levels": depth}


def _blocked(batch: Batch, depth: int, now: datetime) -> Finding | None:
    if batch.finished_at or batch.cancelled_at:
        return None
    words = {"batch": named(batch, depth), "time": duration(now - batch.grown_at)}
    if batch.is_paused:
        text = _("%(batch)s is paused.") % words
        return Finding("child_paused", "warning", text, _("Resume it to continue."), batch.pk)
    if batch.sealed_at or now - batch.grown_at <= GRACE:
        return None
    text = _("%(batch)s has not been sealed. Its last job was added %(time)s ago.") % words
    return Finding("child_open", "warning", text, batch_id=batch.pk)


def _waits_for(batch: Any) -> str:
    counts = {"state": STATES[state(batch)], "done": number(batch.total - batch.pending), "total": number(batch.total)}
    has_callbacks = batch.finished_at and batch.open_callbacks
    how = _("%(state)s, its callbacks have not ended") if has_callbacks else _("%(state)s, %(done)s of %(total)s jobs")
    words = {"batch": batch, "how": how % counts, "position": batch.opener_position}
    if batch.opener_event:
        words["event"] = Event(batch.opener_event).label
        return _("A %(event)s callback waits for its child batch “%(batch)s” (%(how)s).") % words
    return _("Job %(position)s waits for its child batch “%(batch)s” (%(how)s).") % words
