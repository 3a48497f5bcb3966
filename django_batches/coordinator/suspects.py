"""Jobs that are absent from Redis, and since when: each coordinator hands them over to the next.

If coordinators changed faster than the second look comes and each started anew, a lost job would never run again.
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
        found: Any = redis.hgetall(Keys().suspects)
        run_id, offset = _server(redis)
        if found.pop(SERVER.encode(), b"").decode(errors="replace") != run_id:
            return
        self.since = {}
        for rq_id, since in found.items():
            with suppress(ValueError):  # others may write to this key
                self.since[rq_id.decode(errors="replace")] = float(since) - offset

    def hand_over(self, redis: Redis) -> None:
        key, (run_id, offset) = Keys().suspects, _server(redis)
        fields: dict[Any, Any] = {rq_id: f"{since + offset:.3f}" for rq_id, since in self.since.items()}
        pipeline = redis.pipeline()
        pipeline.delete(key)
        pipeline.hset(key, mapping=fields | {SERVER: run_id})
        pipeline.expire(key, TTL)
        pipeline.execute()


def _server(redis: Redis) -> tuple[str, float]:
    """Its run id, and by how many seconds its clock is ahead of the monotonic one."""
    server: Any = redis.info("server")
    seconds, microseconds = redis.time()
    return str(server["run_id"]), float(seconds) + float(microseconds) / 1e6 - time.monotonic()
