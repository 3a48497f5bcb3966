"""Deletes batches that are older than the setting RETENTION, in small steps."""

import time
from collections.abc import Iterator

from .. import database
from ..conf import settings
from ..transitions import pruning
from ..transitions.pruning import Ended

PAGE = 500
BUDGET = 0.02
"""Seconds per turn, after which no further step starts: outcomes wait meanwhile."""


class Pruner:
    """Walks over the old batches of each status, in the order of their end."""

    def __init__(self) -> None:
        self._after: dict[str, Ended] = {}

    def turn(self) -> bool:
        """Prunes in one short transaction, or a few very short ones. Returns False once nothing is left."""
        deadline = time.monotonic() + BUDGET
        for _ in self._steps():
            if time.monotonic() >= deadline:
                return True
        self._after = {}
        return False

    def _steps(self) -> Iterator[None]:
        for status, age in settings().RETENTION.items():
            if age is None:
                continue
            before = database.dialect().now() - age
            while page := pruning.ended_before(status, before, self._after.get(status), PAGE):
                for group in pruning.groups(pruning.deletable(page)):
                    pruning.prune(group, before, in_full=False)
                    self._after[status] = group[-1]
                    yield
                self._after[status] = page[-1]
                yield
