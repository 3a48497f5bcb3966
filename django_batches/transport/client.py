"""The Redis side: the client, through django-redis, and the names of the keys.

The rows are the truth. A poke only makes the coordinator look sooner than its poll of every second would.
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
"""Seconds for each of connecting and answering: what a web request may lose at most while Redis is away, times two."""
MAX_WAKE_UPS = 1_000
"""That are kept: each tells of other jobs, and a turn of the coordinator may take longer than many creators."""
WAKE_PAUSE = 10.0
"""Seconds without further pokes after one that failed."""
ANYTHING, JOBS, RECONCILE_NOW = b"wake_coordinator", b"jobs", b"reconcile"
"""What a poke asks for: all that may be due, jobs to start (of one batch, on these queues), a comparison of the books
with Redis."""


_BATCH_JOB = re.compile(r"batch-[A-Za-z0-9]+-[0-9a-f]{32}-\d+")


class Keys:
    """The names of our keys, and of those keys of RQ that we touch."""

    RQ = RQ_KEY_PREFIX

    def __init__(self, namespace: str | None = None) -> None:
        self.namespace = namespace or settings().NAMESPACE
        self.own = f"batches:{self.namespace}"
        self.rq_ids = f"batch-{self.namespace}-"
        """With which the ids of our jobs in RQ begin."""
        self.outcomes = f"{self.own}:outcomes"
        """Stream of what became of each run; read by the coordinator alone."""
        self.wake_ups = f"{self.own}:wake_ups"
        """Stream that wakes the coordinator."""
        self.wake = f"{self.own}:wake"
        """Stream that wakes idle executors."""
        self.idle = f"{self.own}:idle"
        """Stream that tells the coordinator that an executor has told its outcome and found no other job."""
        self.fence = f"{self.own}:fence"
        """The newest token of a coordinator that has written here."""
        self.on_hold = f"{self.own}:on_hold"
        """Set of the cancelled and paused batches, whose jobs must not be started."""
        self.suspects = f"{self.own}:suspects"
        """Hash of the jobs that had no trace in Redis at the last look, and since when."""
        self.totals = f"{self.own}:totals"
        """Hash of what the coordinators have counted, for the metrics."""

    def rq_id(self, job_id: UUID, dispatch: int) -> str:
        return f"{self.rq_ids}{job_id.hex}-{dispatch}"

    def parse(self, rq_id: str) -> tuple[UUID, int]:
        _, _, key, dispatch = rq_id.split("-")
        return UUID(key), int(dispatch)

    def is_own(self, rq_id: str) -> bool:
        """Whether it is a batch job of this project."""
        return bool(_BATCH_JOB.fullmatch(rq_id)) and rq_id.startswith(self.rq_ids)

    def is_foreign(self, rq_id: str) -> bool:
        """Whether it is a batch job of another project on this Redis."""
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
    """The names of all queues that RQ knows, and `default`, in order."""
    prefix = len(f"{Keys.RQ}:queue:")
    known: Any = redis.smembers(f"{Keys.RQ}:queues")
    return sorted({"default", *(key.decode()[prefix:] for key in known)})


def client(**options: Any) -> Redis:
    """A client of its own on the configured server, for a process that lives long.

    Not the pool of the cache: that one has the timeouts and retries of a cache. `options` go to each connection.
    """
    alias = settings().CACHE
    try:
        pool = get_redis_connection(alias, write=True).connection_pool
    except NotImplementedError as error:
        raise ImproperlyConfigured(
            f'CACHES["{alias}"] is no django-redis cache with one server (ShardClient spreads its keys over several); '
            f'{SETTING}["CACHE"] names the alias of one.'
        ) from error
    except ValueError as error:
        raise ImproperlyConfigured(
            f'CACHES["{alias}"]["LOCATION"] is no address of a Redis ({error}). '
            'Write "redis://localhost:6379/1", for instance.'
        ) from error
    defaults = {
        "socket_connect_timeout": 5.0,
        "socket_timeout": 10.0,
        "retry": Retry(ExponentialBackoff(base=0.05, cap=0.5), 3),
    }
    # The cache's own code may ask for text; ours and RQ's read bytes.
    kwargs = {**pool.connection_kwargs, **defaults, **options, "decode_responses": False}
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **kwargs))


def quick_client(timeout: float, **options: Any) -> Redis:
    """A client that gives up after `timeout` seconds, for each of connecting and one answer, without a retry.

    `options` and exceptions are those of `client`. Disconnect its pool after use.
    """
    timeouts = {"socket_connect_timeout": timeout, "socket_timeout": timeout, "retry": Retry(NoBackoff(), 0)}
    return client(**timeouts | options)


def request_reconcile(redis: Redis) -> None:
    """Makes the coordinator compare its books with Redis now; raises `RedisError` where Redis is away."""
    _add(redis, RECONCILE_NOW)


def _add(redis: Redis, what: bytes, text: str = "") -> None:
    pokes = Keys().wake_ups
    redis.xadd(pokes, {what: text}, maxlen=MAX_WAKE_UPS)
    redis.expire(pokes, 86_400)


_wake_client: Redis | None = None
_silent_until = 0.0


class Added(NamedTuple):
    """Jobs that were added to a batch: the text of a poke."""

    batch_id: UUID
    position: int
    """Of the first of them."""
    queues: list[str]

    def dumps(self) -> str:
        return json.dumps([self.batch_id.hex, self.position, self.queues])

    @classmethod
    def loads(cls, text: bytes) -> "Added":
        """Raises `ValueError` where it is no such text."""
        found = json.loads(text)
        if not isinstance(found, list) or [type(part) for part in found] != [str, int, list]:
            raise ValueError("it is not the list that a creator writes")
        return cls(UUID(found[0]), found[1], [str(queue) for queue in found[2]])


def wake_coordinator(*held: UUID, added: Added | None = None) -> None:
    """Tells the coordinator that there is something to do; silent and quick also where Redis is away.

    `held` are batches that were cancelled or paused: from this moment their jobs are not started any more. `added` is
    all that there is to do, where it is given.
    """
    global _wake_client, _silent_until
    if time.monotonic() < _silent_until:
        return
    try:
        if _wake_client is None:
            _wake_client = quick_client(WAKE_TIMEOUT)
        keys = Keys()
        pipeline = _wake_client.pipeline(transaction=False)
        if held:
            pipeline.sadd(keys.on_hold, *(batch_id.hex for batch_id in held))
        _add(pipeline, *((JOBS, added.dumps()) if added else (ANYTHING,)))
        pipeline.execute()
    except (RedisError, OSError) as error:
        _silent_until = time.monotonic() + WAKE_PAUSE
        logger.debug("Redis did not take a poke (%s); the coordinator's poll will see the rows.", error)
