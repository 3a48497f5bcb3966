"""The options of `manage.py batchworker`."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """A worker without `queues` takes jobs from all queues."""

    queues: Sequence[str] = ()
    workers: int = 1
    burst: bool = False
    max_jobs: int | None = None
    max_jobs_per_child: int | None = None
    max_memory_per_child: int | None = None
    """Bytes."""
    name: str = ""
    grace: float | None = None
    """Seconds that running jobs may take after SIGTERM; None means no limit."""
