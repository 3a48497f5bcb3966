"""The timer of prune: what is older than the setting RETENTION goes, little by little."""

import time
from datetime import timedelta

from ..conf import settings
from ..transitions import pruning
from ..transitions.pruning import Ended
from .lease import database_time

PAGE = 500
BUDGET = 0.02
"""Seconds of one turn, after which nothing further is begun: outcomes wait meanwhile."""


class Pruner:
    """Walks over the old batches of each status, in the order in which they ended."""

    def __init__(self) -> None:
        self._after: dict[str, Ended] = {}

    def turn(self) -> bool:
        """One short transaction, or a few very short ones; False once it is through."""
        deadline = time.monotonic() + BUDGET
        for status, age in settings().RETENTION.items():
            if age is not None and self._walk(status, age, deadline):
                return True
        self._after = {}
        return False

    def _walk(self, status: str, age: timedelta, deadline: float) -> bool:
        """Goes on over the batches of one status; False where none is left."""
        before = database_time() - age
        while page := pruning.ended_before(status, before, self._after.get(status), PAGE):
            for group in pruning.groups(pruning.deletable(page)):
                pruning.prune(group, before, in_full=False)
                self._after[status] = group[-1]
                if time.monotonic() >= deadline:
                    return True
            self._after[status] = page[-1]
            if time.monotonic() >= deadline:
                return True
        return False
