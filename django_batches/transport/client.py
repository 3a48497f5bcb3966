"""The Redis clients, the names of the keys, and wake-ups of the coordinator.

The rows are the truth; Redis only transports. A wake-up makes the coordinator act before its next poll.
"""

import json
import logging
import re
import time
from typing import Any, NamedTuple
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django_redis import get_redis_connection
from redis import ConnectionPool, Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq.defaults import RQ_KEY_PREFIX

from ..conf import SETTING, settings

logger = logging.getLogger("django_batches")

WAKE_TIMEOUT = 0.1
"""Seconds for each of connecting and answering: a web request loses at most twice that while Redis is away."""
MAX_WAKE_UPS = 1_000
"""Wake-ups that are kept. Each names other jobs, and many may be sent during one turn of the coordinator."""
WAKE_PAUSE = 10.0
"""Seconds without wake-ups after one that failed."""
ANYTHING, JOBS, RECONCILE_NOW = b"wake_coordinator", b"jobs", b"reconcile"
"""What a wake-up requests: to check all that may be due, to dispatch these jobs, to compare the rows with Redis."""

_BATCH_JOB = re.compile(r"batch-[A-Za-z0-9]+-[0-9a-f]{32}-\d+")


class Keys:
    """The names of our keys, and of RQ's keys that we use. Ours begin with `batches:<namespace>:`.

    * `outcomes`, stream: one entry per run. From executors, plain RQ workers and the reap script to the coordinator,
      which deletes what it has applied.
    * `wake_ups`, stream: what may be due. From `wake_coordinator` to the coordinator.
    * `wake`, stream: something was pushed. From the push script to idle executors.
    * `idle`, stream: an executor found no further job. From the turn script to the coordinator, which then stops
      waiting for more outcomes.
    * `on_hold`, set: cancelled and paused batches. `wake_coordinator` adds to it and the coordinator corrects it; the
      turn script and plain RQ workers do not start their jobs.
    * `fence`, string: the newest lease token. From the active coordinator to the push script, which refuses older ones.
    * `pushed`, string: the id of the last push. The push script skips a call that redis-py repeats.
    * `slot:<worker>`, string: the RQ id of the job that an executor runs. For the turn, renew and reap scripts.
    * `turn`, string: counts calls of the turn script, so that it starts with another queue each time.
    * `suspects`, hash: RQ ids that are absent from Redis, and since when. From one coordinator to the next.
    * `totals`, hash: counts of outcomes and repairs. From the coordinator to the metrics.

    In RQ's hash of a job, the push script adds the fields `batches` (the message), `batches_owner` (the batch, and 1
    for a callback or 0) and `batches_pushed_at`.
    """

    RQ = RQ_KEY_PREFIX

    def __init__(self, namespace: str | None = None) -> None:
        self.namespace = namespace or settings().NAMESPACE
        self.own = f"batches:{self.namespace}"
        self.rq_ids = f"batch-{self.namespace}-"
        """The prefix of our RQ ids."""
        self.outcomes = f"{self.own}:outcomes"
        self.wake_ups = f"{self.own}:wake_ups"
        self.wake = f"{self.own}:wake"
        self.idle = f"{self.own}:idle"
        self.fence = f"{self.own}:fence"
        self.on_hold = f"{self.own}:on_hold"
        self.suspects = f"{self.own}:suspects"
        self.totals = f"{self.own}:totals"

    def rq_id(self, job_id: UUID, dispatch: int) -> str:
        return f"{self.rq_ids}{job_id.hex}-{dispatch}"

    def parse(self, rq_id: str) -> tuple[UUID, int]:
        _, _, key, dispatch = rq_id.split("-")
        return UUID(key), int(dispatch)

    def is_own(self, rq_id: str) -> bool:
        """Whether it is the id of a batch job of this project."""
        return bool(_BATCH_JOB.fullmatch(rq_id)) and rq_id.startswith(self.rq_ids)

    def is_foreign(self, rq_id: str) -> bool:
        """Whether it is the id of a batch job of another project on this Redis."""
        return bool(_BATCH_JOB.fullmatch(rq_id)) and not rq_id.startswith(self.rq_ids)

    def job(self, rq_id: str) -> str:
        return f"{self.RQ}:job:{rq_id}"

    def queue(self, name: str) -> str:
        return f"{self.RQ}:queue:{name}"

    def executions(self, rq_id: str) -> str:
        return f"{self.RQ}:executions:{rq_id}"

    def execution(self, rq_id: str, execution: object) -> str:
        return f"{self.RQ}:execution:{rq_id}:{execution}"

    def started(self, queue: str) -> str:
        return f"{self.RQ}:wip:{queue}"

    def worker(self, name: str) -> str:
        return f"{self.RQ}:worker:{name}"

    def workers_of(self, queue: str) -> str:
        return f"{self.RQ}:workers:{queue}"


def known_queues(redis: Redis) -> list[str]:
    """The sorted names of all queues that RQ knows, and `default`."""
    prefix = len(f"{Keys.RQ}:queue:")
    known: Any = redis.smembers(f"{Keys.RQ}:queues")
    return sorted({"default", *(key.decode()[prefix:] for key in known)})


def client(**options: Any) -> Redis:
    """A new client for the configured server, for long-lived processes. Raises `ImproperlyConfigured`.

    It does not share the cache's pool, which has the timeouts and retries of a cache. `options` are for connections.
    """
    alias = settings().CACHE
    try:
        pool = get_redis_connection(alias, write=True).connection_pool
    except NotImplementedError as error:
        raise ImproperlyConfigured(
            f'CACHES["{alias}"] is not a django-redis cache with one server (ShardClient distributes its keys over '
            f'several). Set {SETTING}["CACHE"] to the alias of one.'
        ) from error
    except ValueError as error:
        raise ImproperlyConfigured(
            f'CACHES["{alias}"]["LOCATION"] is not the address of a Redis server ({error}). '
            'An example: "redis://localhost:6379/1".'
        ) from error
    timeouts = {"socket_connect_timeout": 5.0, "socket_timeout": 10.0}
    retry = Retry(ExponentialBackoff(base=0.05, cap=0.5), 3)
    # The cache may return text; our code and RQ's read bytes.
    kwargs = {**pool.connection_kwargs, **timeouts, "retry": retry, **options, "decode_responses": False}
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **kwargs))


def quick_client(timeout: float, **options: Any) -> Redis:
    """A client that gives up after `timeout` seconds, for each of connecting and one answer, without a retry.

    `options` and exceptions are those of `client`. Disconnect its pool after use.
    """
    timeouts = {"socket_connect_timeout": timeout, "socket_timeout": timeout, "retry": Retry(NoBackoff(), 0)}
    return client(**timeouts | options)


class Added(NamedTuple):
    """Jobs that were added to a batch, in a wake-up."""

    batch_id: UUID
    position: int
    """Of the first of them."""
    queues: list[str]

    def dumps(self) -> str:
        return json.dumps([self.batch_id.hex, self.position, self.queues])

    @classmethod
    def loads(cls, text: bytes) -> "Added":
        """Raises `ValueError` if another version wrote the text."""
        found = json.loads(text)
        if not isinstance(found, list) or [type(part) for part in found] != [str, int, list]:
            raise ValueError("it is not a list as `dumps` writes it")
        return cls(UUID(found[0]), found[1], [str(queue) for queue in found[2]])


def request_reconcile(redis: Redis) -> None:
    """Makes the coordinator compare rows and Redis now. Raises `RedisError` if Redis is away."""
    _add_wake_up(redis, RECONCILE_NOW)


def _add_wake_up(redis: Redis, name: bytes, text: str = "") -> None:
    key = Keys().wake_ups
    redis.xadd(key, {name: text}, maxlen=MAX_WAKE_UPS)
    redis.expire(key, 86_400)


_wake_client: Redis | None = None
_silent_until = 0.0


def wake_coordinator(*on_hold: UUID, added: Added | None = None) -> None:
    """Wakes the coordinator. Quick and silent even while Redis is away.

    `on_hold` are batches that were cancelled or paused: from now on their jobs are not started. `added` are jobs to
    dispatch; without it, the coordinator checks all that may be due.
    """
    global _wake_client, _silent_until
    if time.monotonic() < _silent_until:
        return
    try:
        if _wake_client is None:
            _wake_client = quick_client(WAKE_TIMEOUT)
        pipeline = _wake_client.pipeline(transaction=False)
        if on_hold:
            pipeline.sadd(Keys().on_hold, *(batch_id.hex for batch_id in on_hold))
        _add_wake_up(pipeline, *((JOBS, added.dumps()) if added else (ANYTHING,)))
        pipeline.execute()
    except (RedisError, OSError) as error:
        _silent_until = time.monotonic() + WAKE_PAUSE
        logger.debug("Redis did not accept a wake-up (%s); the coordinator's poll will find the rows.", error)
