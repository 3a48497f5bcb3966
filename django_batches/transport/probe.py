"""Queries Redis about the workers, with short timeouts because a user waits for the answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from django.core.exceptions import ImproperlyConfigured
from redis.exceptions import RedisError

from .client import Keys, quick_client

TIMEOUT = 0.3
"""Seconds for each of connecting to Redis and its answer."""


@dataclass(frozen=True)
class ProbeResult:
    """The workers of some queues."""

    error: str = ""
    """Why the query failed."""
    is_suspended: bool = False
    workers: dict[str, int] = field(default_factory=dict)
    """Workers that are alive, per queue."""


def probe_workers(queues: Sequence[str]) -> ProbeResult:
    """Queries the workers of the queues, in two round trips."""
    redis = None
    try:
        redis = quick_client(TIMEOUT)
        keys = Keys()
        pipeline = redis.pipeline(transaction=False)
        pipeline.exists(f"{keys.RQ}:suspended")
        for queue in queues:
            pipeline.smembers(keys.workers_of(queue))
        suspended, *members = pipeline.execute()
        # The set still has workers whose host was lost; their own key has expired.
        for names in members:
            pipeline.exists(*(names or [f"{keys.own}:nobody"]))
        alive = pipeline.execute() if members else []
        return ProbeResult("", bool(suspended), dict(zip(queues, alive, strict=True)))
    except (RedisError, OSError, ImproperlyConfigured) as error:
        return ProbeResult(f"{type(error).__name__}: {error}")
    finally:
        if redis is not None:
            redis.connection_pool.disconnect()


class ProbeCache:
    """Queries each queue once, for many batches, and does not query again after an error."""

    def __init__(self) -> None:
        self._result: ProbeResult | None = None

    def __call__(self, queues: Sequence[str]) -> ProbeResult:
        result = self._result
        known = result.workers if result else {}
        unknown = [queue for queue in queues if queue not in known]
        if result is None or (unknown and not result.error):
            new = probe_workers(unknown)
            result = self._result = replace(new, workers=known | new.workers)
        return replace(result, workers={queue: result.workers.get(queue, 0) for queue in queues})
