"""Jobs without a trace in Redis, and since when: handed from one coordinator to the next.

Two looks must find no trace before a job counts as lost. Where coordinators come and go faster than that, each would
begin anew, and nothing lost would ever come back.
"""

import time
from contextlib import suppress
from typing import Any

from redis import Redis

from ..transport.client import Keys

TTL = 3_600
SERVER = "server"
"""The field with the run id of the Redis server; the others are ids of jobs."""


class Suspects:
    """Kept by the process, and in Redis for whoever keeps the books after it."""

    def __init__(self) -> None:
        self.since: dict[str, float] = {}
        """By the monotonic clock."""

    def take_over(self, redis: Redis) -> None:
        """Those of the coordinator before, instead of what this process has known in a time before that.

        Not where the server was started since: one that was rolled back has old ones, of jobs that may run now.
        """
        kept: Any = redis.hgetall(Keys().suspects)
        found = {rq_id.decode(errors="replace"): since for rq_id, since in kept.items()}
        if found.pop(SERVER, b"").decode(errors="replace") != _server(redis):
            return
        offset = time.monotonic() - _now(redis)
        self.since = {}
        for rq_id, since in found.items():
            with suppress(ValueError):  # anybody may write there
                self.since[rq_id] = float(since) + offset

    def hand_over(self, redis: Redis) -> None:
        """Leaves them for the next coordinator."""
        key, offset = Keys().suspects, _now(redis) - time.monotonic()
        found: dict[Any, Any] = {rq_id: f"{since + offset:.3f}" for rq_id, since in self.since.items()}
        pipeline = redis.pipeline()
        pipeline.delete(key)
        pipeline.hset(key, mapping=found | {SERVER: _server(redis)})
        pipeline.expire(key, TTL)
        pipeline.execute()


def _now(redis: Redis) -> float:
    seconds, microseconds = redis.time()
    return float(seconds) + float(microseconds) / 1e6


def _server(redis: Redis) -> str:
    server: Any = redis.info("server")
    return str(server["run_id"])
