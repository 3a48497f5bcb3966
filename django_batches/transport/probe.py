"""What Redis says about the workers: asked with short timeouts, because somebody waits for the answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from django.core.exceptions import ImproperlyConfigured
from redis.exceptions import RedisError

from .client import Keys, quick_client

TIMEOUT = 0.3
"""Seconds for each of connecting to Redis and its answer."""


@dataclass(frozen=True)
class ProbeResult:
    """What Redis says about the workers of some queues."""

    error: str = ""
    """Why it could not be asked."""
    is_suspended: bool = False
    workers: dict[str, int] = field(default_factory=dict)
    """Workers that are alive, per queue."""


def ask(queues: Sequence[str]) -> ProbeResult:
    """Asks Redis for the workers of the queues; two round trips with short timeouts."""
    redis = None
    try:
        redis = quick_client(TIMEOUT)
        keys = Keys()
        pipeline = redis.pipeline(transaction=False)
        pipeline.exists(f"{keys.RQ}:suspended")
        for queue in queues:
            pipeline.smembers(keys.workers_of(queue))
        suspended, *members = pipeline.execute()
        # The set keeps the names of workers whose host was lost; their record has run out.
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
    """What Redis has said, for looks at many batches: each queue is asked once, and a silent server not again."""

    def __init__(self) -> None:
        self._said: ProbeResult | None = None

    def __call__(self, queues: Sequence[str]) -> ProbeResult:
        said = self._said
        new = [queue for queue in queues if said is None or queue not in said.workers]
        if said is None or (new and not said.error):
            told = ask(new)
            said = self._said = ProbeResult(
                told.error, told.is_suspended, {**(said.workers if said else {}), **told.workers}
            )
        return ProbeResult(said.error, said.is_suspended, {queue: said.workers.get(queue, 0) for queue in queues})
