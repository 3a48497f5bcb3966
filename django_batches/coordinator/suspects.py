"""Jobs that are absent from Redis, and since when: each coordinator hands them over to the next.

A job is lost if two looks do not find it. If coordinators changed faster than that and each started anew, a lost job
would never run again.
"""

import time
from contextlib import suppress
from typing import Any

from redis import Redis

from ..transport.client import Keys

TTL = 3_600
SERVER = "server"
"""The field with the run id of the Redis server; the other fields are RQ ids."""


class Suspects:
    """In this process, and in Redis for the next coordinator."""

    def __init__(self) -> None:
        self.since: dict[str, float] = {}
        """By RQ id; monotonic time."""

    def take_over(self, redis: Redis) -> None:
        """Replaces this process's suspects, which may be old, by those of the previous coordinator.

        Not if the server has restarted: a restored one has old suspects, which may run now.
        """
        kept: Any = redis.hgetall(Keys().suspects)
        found = {rq_id.decode(errors="replace"): since for rq_id, since in kept.items()}
        if found.pop(SERVER, b"").decode(errors="replace") != _run_id(redis):
            return
        offset = time.monotonic() - _now(redis)
        self.since = {}
        for rq_id, since in found.items():
            with suppress(ValueError):  # others may write to this key
                self.since[rq_id] = float(since) + offset

    def hand_over(self, redis: Redis) -> None:
        """Writes them to Redis."""
        key, offset = Keys().suspects, _now(redis) - time.monotonic()
        fields: dict[Any, Any] = {rq_id: f"{since + offset:.3f}" for rq_id, since in self.since.items()}
        pipeline = redis.pipeline()
        pipeline.delete(key)
        pipeline.hset(key, mapping=fields | {SERVER: _run_id(redis)})
        pipeline.expire(key, TTL)
        pipeline.execute()


def _now(redis: Redis) -> float:
    seconds, microseconds = redis.time()
    return float(seconds) + float(microseconds) / 1e6


def _run_id(redis: Redis) -> str:
    server: Any = redis.info("server")
    return str(server["run_id"])
