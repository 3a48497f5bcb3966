"""For `show`: who opened a batch, and which batches its jobs and callbacks have opened."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from ...models import Batch
from ...monitoring.formatting import number
from ...monitoring.tree import MAX_CHILDREN, Child, Opener, ancestors, children
from .naming import short, titled
from .verb import printable

SHOWN = 10
"""Child batches that are shown, the most urgent first."""
LEVELS = 5
"""Batches above that are shown, the nearest first."""


@dataclass
class Relatives:
    """The batches above and below one, in a fixed number of queries."""

    above: list[Opener]
    below: list[Child]
    batches: dict[UUID, Batch] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch) -> "Relatives":
        openers = ancestors(batch)
        below = sorted(children(Batch.objects.all(), [batch.pk]), key=lambda child: child.urgency)
        keys = [opener.owner_id for opener in openers[:LEVELS]] + [child.batch_id for child in below[:SHOWN]]
        return cls(openers, below, Batch.objects.in_bulk(keys) if keys else {})

    def data(self) -> dict[str, Any]:
        """For programs."""
        return {
            "parents": [self._parent(opener) for opener in self.above[:LEVELS] if opener.owner_id in self.batches],
            "children": {
                "total": len(self.below),
                **Counter(child.status for child in self.below),
                "first": [self._child(child) for child in self.below[:SHOWN] if child.batch_id in self.batches],
            },
        }

    def openers(self) -> str:
        """Who opened it, who opened the batch of that one, and so on."""
        known = [opener for opener in self.above[:LEVELS] if opener.owner_id in self.batches]
        words = [f"{_opener(opener)} of {titled(self.batches[opener.owner_id])}" for opener in known]
        more = [f"and {number(len(self.above) - LEVELS)} more above"] if len(self.above) > LEVELS else []
        return ", opened by ".join([*words, *more])

    def counts(self) -> str:
        """How many child batches, by status."""
        counts = Counter(child.status for child in self.below)
        many = f"more than {number(MAX_CHILDREN)}" if len(self.below) >= MAX_CHILDREN else number(len(self.below))
        return f"{many}: {', '.join(f'{number(count)} {status}' for status, count in counts.most_common())}"

    def lines(self) -> list[list[str]]:
        """A line per child that is shown."""
        lines = []
        for child in self.below[:SHOWN]:
            if batch := self.batches.get(child.batch_id):
                done = f"{number(batch.total - batch.pending)} / {number(batch.total)}"
                by = _opener(child.opener)
                lines.append([short(batch), batch.status, done, by, printable(batch.description)])
        return lines

    def _parent(self, opener: Opener) -> dict[str, Any]:
        return _data(self.batches[opener.owner_id], opener)

    def _child(self, child: Child) -> dict[str, Any]:
        batch = self.batches[child.batch_id]
        return _data(batch, child.opener) | {"total": batch.total, "pending": batch.pending}


def _data(batch: Batch, opener: Opener) -> dict[str, Any]:
    by = {"job": opener.job_id, "position": opener.position, "event": opener.event}
    return {"id": batch.pk, "description": batch.description, "status": batch.status, "opened_by": by}


def _opener(opener: Opener) -> str:
    return f"callback {opener.event}" if opener.event else f"job {opener.position}"
