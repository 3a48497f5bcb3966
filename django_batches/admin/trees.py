"""The batches around a batch: the line of those above it, and the tree of those below it, a few of each level."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from ..models import Batch
from ..models.throughput import Pace, paces
from ..monitoring import tree
from ..monitoring.progress import snapshot
from ..monitoring.tree import Child, Opener
from ..states import BatchStatus, Event

LEVELS = 3
"""Levels below a batch that its page shows."""
SHOWN = 20
"""Batches of each level that are shown, and of each parent."""
NEAREST = 4
"""Batches above that are shown beside the topmost one."""


@dataclass(frozen=True)
class Step:
    """A batch above, and its job or callback that the line goes on with."""

    batch: Batch
    opener: Opener
    left_out: int = 0
    """Batches between this one and the next step that are not shown."""

    @property
    def by(self) -> str:
        return opener_text(self.opener)


@dataclass
class Node:
    """A batch in the tree."""

    batch: Batch
    shown: dict[str, Any]
    opener: Opener
    children: "list[Node]" = field(default_factory=list)
    count: int = 0
    """Child batches that it has, shown or not; `tree.MAX_CHILDREN` where there are as many or more."""

    @property
    def by(self) -> str:
        return opener_text(self.opener)

    @property
    def more(self) -> int:
        return self.count - len(self.children)


@dataclass(frozen=True)
class Tree:
    """What is below a batch."""

    children: list[Node]
    count: int
    totals: list[tuple[str, str, int]]
    """Of its own child batches: (status, its word, how many)."""
    shown: dict[str, dict[str, Any]]
    """The snapshots of all batches in it, by their keys."""

    @property
    def more(self) -> int:
        return self.count - len(self.children)

    @property
    def is_cut(self) -> bool:
        """Whether there may be more child batches than were counted."""
        return self.count >= tree.MAX_CHILDREN


def opener_text(opener: Opener) -> str:
    """The job or callback that opened a batch, in words."""
    if opener.event:
        return _("%(event)s callback") % {"event": Event(opener.event).label}
    return _("job #%(position)s") % {"position": opener.position}


def trail(batch: Batch, visible: "QuerySet[Batch]") -> list[Step]:
    """The batches above, the topmost first, the nearest ones and the topmost; those alone that the user may see."""
    openers = tree.ancestors(batch)
    if not openers:
        return []
    chosen = [*openers[:NEAREST], *openers[NEAREST:][-1:]]
    batches = visible.in_bulk([opener.owner_id for opener in chosen])
    steps = [Step(batches[opener.owner_id], opener) for opener in reversed(chosen) if opener.owner_id in batches]
    if len(openers) > len(chosen) and len(steps) == len(chosen):
        steps[0] = Step(steps[0].batch, steps[0].opener, len(openers) - len(chosen))
    return steps


def of(batch: Batch, visible: "QuerySet[Batch]", now: datetime) -> Tree | None:
    """The tree below a batch, or None; one statement per level, one for the batches and one for their pace."""
    levels = _levels(batch, visible)
    if not levels:
        return None
    keys = [child.batch_id for level in levels[:LEVELS] for child in level[:SHOWN]]
    batches = visible.in_bulk(keys)
    pace = paces(batches.values(), now)
    counts = Counter(child.opener.owner_id for level in levels for child in level)
    nodes: dict[UUID, Node] = {}
    below: dict[UUID, list[Node]] = {}
    for level in levels[:LEVELS]:
        for child in sorted(level[:SHOWN], key=lambda child: child.batch_id):
            if found := batches.get(child.batch_id):
                shown = snapshot(found, pace.get(found.pk, Pace()), now)
                nodes[found.pk] = Node(found, shown, child.opener, count=counts[found.pk])
                below.setdefault(child.opener.owner_id, []).append(nodes[found.pk])
    for key, node in nodes.items():
        node.children = below.get(key, [])
    by_status = Counter(child.status for child in levels[0])
    totals = [(str(name), str(word), by_status[name]) for name, word in BatchStatus.choices if by_status[name]]
    shown_by_key = {str(key): node.shown for key, node in nodes.items()}
    return Tree(below.get(batch.pk, []), counts[batch.pk], totals, shown_by_key)


def _levels(batch: Batch, visible: "QuerySet[Batch]") -> list[list[Child]]:
    """The child batches, the most urgent first, and those of the ones that are shown; one level more than is shown."""
    levels: list[list[Child]] = []
    owners = [batch.pk]
    while owners and len(levels) <= LEVELS:
        level = sorted(tree.children(visible, owners), key=lambda child: child.urgency)
        if not level:
            break
        levels.append(level)
        owners = [child.batch_id for child in level[:SHOWN]]
    return levels
