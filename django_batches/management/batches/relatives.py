"""For `show`: the batches above a batch, and its child batches."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ...models import Batch
from ...monitoring.formatting import number
from ...monitoring.tree import MAX_CHILDREN, Child, Opener, ancestors, children
from .base import printable
from .lookup import short, titled

MAX_SHOWN = 10
"""Child batches that are shown, most urgent first."""
MAX_LEVELS = 5
"""Batches above that are shown, nearest first."""


@dataclass
class Relatives:
    """The batches above and below a batch, from a fixed number of queries."""

    parents: list[tuple[Opener, Batch]]
    more_above: int
    children: list[tuple[Child, Batch]]
    statuses: Counter[str]
    """How many child batches have each status."""

    @classmethod
    def of(cls, batch: Batch) -> "Relatives":
        above = ancestors(batch)
        below = sorted(children(Batch.objects.all(), [batch.pk]), key=lambda child: child.urgency)
        keys = [opener.owner_id for opener in above[:MAX_LEVELS]] + [child.batch_id for child in below[:MAX_SHOWN]]
        found = Batch.objects.in_bulk(keys)
        return cls(
            [(opener, found[opener.owner_id]) for opener in above[:MAX_LEVELS] if opener.owner_id in found],
            max(0, len(above) - MAX_LEVELS),
            [(child, found[child.batch_id]) for child in below[:MAX_SHOWN] if child.batch_id in found],
            Counter(child.status for child in below),
        )

    def data(self) -> dict[str, Any]:
        """As JSON."""
        first = [
            {**_data(batch, child.opener), "total": batch.total, "pending": batch.pending}
            for child, batch in self.children
        ]
        return {
            "parents": [_data(batch, opener) for opener, batch in self.parents],
            "children": {"total": self.statuses.total(), **self.statuses, "first": first},
        }

    def opened_by(self) -> str:
        """The opener of the batch, the opener of that opener's batch, and so on."""
        words = [f"{_name(opener)} of {titled(batch)}" for opener, batch in self.parents]
        more = [f"and {number(self.more_above)} more above"] if self.more_above else []
        return ", opened by ".join([*words, *more])

    def counts(self) -> str:
        """How many child batches there are, by status."""
        total = self.statuses.total()
        text = f"more than {number(MAX_CHILDREN)}" if total >= MAX_CHILDREN else number(total)
        return f"{text}: {', '.join(f'{number(count)} {status}' for status, count in self.statuses.most_common())}"

    def rows(self) -> list[list[str]]:
        """A row per child batch that is shown."""
        return [
            [
                short(batch), batch.status, f"{number(batch.total - batch.pending)} / {number(batch.total)}",
                _name(child.opener), printable(batch.description),
            ]
            for child, batch in self.children
        ]  # fmt: skip


def _data(batch: Batch, opener: Opener) -> dict[str, Any]:
    opened_by = {"job": opener.job_id, "position": opener.position, "event": opener.event}
    return {"id": batch.pk, "description": batch.description, "status": batch.status, "opened_by": opened_by}


def _name(opener: Opener) -> str:
    return f"callback {opener.event}" if opener.event else f"job {opener.position}"
