"""The ancestors and the child batches of a batch, as `show` prints them."""

from collections import Counter
from typing import Any

from ...models import Batch
from ...monitoring.formatting import number
from ...monitoring.tree import MAX_CHILDREN, Opener, ancestors, child_batches, children
from .base import printable, short, titled

MAX_PARENTS_SHOWN, MAX_CHILDREN_SHOWN = 5, 10


class Relatives:
    """The batches above and below a batch, read with a fixed number of queries."""

    def __init__(self, batch: Batch) -> None:
        above, below = ancestors(batch), children(child_batches(Batch.objects.all(), [batch.pk]))
        openers, first = above[:MAX_PARENTS_SHOWN], below[:MAX_CHILDREN_SHOWN]
        found = Batch.objects.in_bulk([each.owner_id for each in openers] + [child.batch_id for child in first])
        self.parents = [(opener, found[opener.owner_id]) for opener in openers if opener.owner_id in found]
        self.more_above = max(0, len(above) - MAX_PARENTS_SHOWN)
        self.children = [(child, found[child.batch_id]) for child in first if child.batch_id in found]
        self.statuses = Counter(child.status for child in below)

    def data(self) -> dict[str, Any]:
        parents = [_data(batch, opener) for opener, batch in self.parents]
        first = [_data(batch, each.opener, total=batch.total, pending=batch.pending) for each, batch in self.children]
        return {"parents": parents, "children": {"total": self.statuses.total(), **self.statuses, "first": first}}

    def opened_by(self) -> str:
        """Names the opener of the batch, the opener of that opener's batch, and so on."""
        words = [f"{_name(opener)} of {titled(batch)}" for opener, batch in self.parents]
        more = [f"and {number(self.more_above)} more above"] if self.more_above else []
        return ", opened by ".join([*words, *more])

    def counts(self) -> str:
        """Formats the number of child batches, in total and by status."""
        total = self.statuses.total()
        text = f"more than {number(MAX_CHILDREN)}" if total >= MAX_CHILDREN else number(total)
        return f"{text}: {', '.join(f'{number(count)} {status}' for status, count in self.statuses.most_common())}"

    def rows(self) -> list[list[str]]:
        return [
            [
                short(batch), batch.status, f"{number(batch.total - batch.pending)} / {number(batch.total)}",
                _name(child.opener), printable(batch.description),
            ]
            for child, batch in self.children
        ]  # fmt: skip


def _data(batch: Batch, opener: Opener, **counts: int) -> dict[str, Any]:
    opened_by = {"job": opener.job_id, "position": opener.position, "event": opener.event}
    return {"id": batch.pk, "description": batch.description, "status": batch.status, "opened_by": opened_by, **counts}


def _name(opener: Opener) -> str:
    return f"callback {opener.event}" if opener.event else f"job {opener.position}"
