"""The options of `manage.py batchworker`."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Without `queues`, a worker works all queues."""

    queues: Sequence[str] = ()
    workers: int = 1
    burst: bool = False
    max_jobs: int | None = None
    max_jobs_per_child: int | None = None
    max_memory_per_child: int | None = None
    """Bytes."""
    name: str = ""
    grace: float | None = None
    """Seconds that running jobs have after SIGTERM; None for as long as they take."""
