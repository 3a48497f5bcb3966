"""What the diagnosis of a batch says."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

FRESH = timedelta(seconds=15)
"""So long after it was opened a batch may wait for workers that learn of a new queue, or for its next job."""


@dataclass(frozen=True)
class Finding:
    """One reason why a batch does not move, or one thing that it waits for."""

    code: str
    level: str
    """error: it will not move until somebody does something; warning: somebody has stopped it; info: it waits."""
    text: str
    advice: str = ""
    batch_id: UUID | None = None
    """The batch below it that this is about."""
