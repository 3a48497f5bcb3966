"""Finds the ancestors of a batch and the tree of batches below it, of which it shows a few per level."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from ..models import Batch
from ..models.throughput_and_eta import throughputs
from ..monitoring import tree
from ..monitoring.progress import snapshot
from ..monitoring.tree import Child, Opener
from ..states import BatchStatus, Event

MAX_LEVELS = 3
"""How many levels of the tree are shown."""
MAX_PER_LEVEL = 20
"""How many batches of each level are shown."""
NEAREST = 4
"""How many of the nearest ancestors are shown, besides the topmost one."""


@dataclass
class Related:
    batch: Batch
    opener: Opener
    left_out: int = 0
    """How many ancestors between this one and the next are not shown."""

    @property
    def opened_by(self) -> str:
        """The job or callback that opened the batch. For an ancestor, its job or callback that opened the next one."""
        if self.opener.event:
            return _("%(event)s callback") % {"event": Event(self.opener.event).label}
        return _("job #%(position)s") % {"position": self.opener.position}


@dataclass(kw_only=True)
class Node(Related):
    shown: dict[str, Any]
    children: "list[Node]"
    count: int
    """The number of child batches, at most `tree.MAX_CHILDREN`."""

    @property
    def more(self) -> int:
        return self.count - len(self.children)


@dataclass(frozen=True)
class Tree:
    """The batches below a batch."""

    children: list[Node]
    more: int
    is_cut: bool
    """Whether there may be more child batches than were counted."""
    totals: list[tuple[str, str, int]]
    """The direct child batches by status: (status, label, number)."""
    shown: dict[str, dict[str, Any]]


def ancestors(batch: Batch, visible: "QuerySet[Batch]") -> list[Related]:
    """Returns the topmost and the nearest ancestors, from the top, without those that are not in `visible`."""
    openers = tree.ancestors(batch)
    if not openers:
        return []
    chosen = [*openers[:NEAREST], *openers[NEAREST:][-1:]]
    batches = visible.in_bulk([opener.owner_id for opener in chosen])
    found = [Related(batches[opener.owner_id], opener) for opener in reversed(chosen) if opener.owner_id in batches]
    if len(found) == len(chosen):
        found[0].left_out = len(openers) - len(chosen)
    return found


def tree_of(batch: Batch, visible: "QuerySet[Batch]", now: datetime) -> Tree | None:
    """Returns the tree below a batch, or None. Makes one query per level, one for batches and one for throughputs."""
    levels = _levels(batch, visible)
    if not levels:
        return None
    shown = [sorted(level[:MAX_PER_LEVEL], key=lambda child: child.batch_id) for level in levels[:MAX_LEVELS]]
    batches = visible.in_bulk([child.batch_id for level in shown for child in level])
    throughput = throughputs(batches.values(), now)
    counts = Counter(child.opener.owner_id for level in levels for child in level)
    nodes: dict[UUID, Node] = {}
    below: dict[UUID, list[Node]] = defaultdict(list)
    for child in chain.from_iterable(shown):
        if found := batches.get(child.batch_id):
            data = snapshot(found, throughput.get(found.pk), now)
            node = Node(found, child.opener, shown=data, children=below[found.pk], count=counts[found.pk])
            below[child.opener.owner_id].append(node)
            nodes[found.pk] = node
    by_status = Counter(child.status for child in levels[0])
    totals = [(str(name), str(label), by_status[name]) for name, label in BatchStatus.choices if by_status[name]]
    snapshots = {str(key): node.shown for key, node in nodes.items()}
    children, count = below[batch.pk], counts[batch.pk]
    return Tree(children, count - len(children), count >= tree.MAX_CHILDREN, totals, snapshots)


def _levels(batch: Batch, visible: "QuerySet[Batch]") -> list[list[Child]]:
    """Reads the levels below a batch, each by urgency, and one more than is shown. Only follows shown batches."""
    levels: list[list[Child]] = []
    owners = [batch.pk]
    while owners and len(levels) <= MAX_LEVELS:
        level = tree.children(tree.child_batches(visible, owners))
        if not level:
            break
        levels.append(level)
        owners = [child.batch_id for child in level[:MAX_PER_LEVEL]]
    return levels
