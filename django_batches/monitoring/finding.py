"""A finding of the diagnosis."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

GRACE = timedelta(seconds=15)
"""For this long, a new batch may have no worker, and an open batch may get no new job, before either is a problem."""


@dataclass(frozen=True)
class Finding:
    """One reason why a batch isn't progressing, or one thing that it waits for."""

    code: str
    level: str
    """error: the batch is stuck until someone intervenes. warning: a user stopped it or must act. info: it waits."""
    text: str
    advice: str = ""
    batch_id: UUID | None = None

    def __str__(self) -> str:
        return f"{self.text} {self.advice}".rstrip()
