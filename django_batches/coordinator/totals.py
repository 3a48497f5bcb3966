"""Counters for the metrics, in Redis. They only grow, until Redis is emptied.

A crash loses the counts of the last second.
"""

from collections import Counter
from typing import Any

from redis import Redis

from ..transport.client import Keys

REPAIRS = "repairs"
"""Batches whose counters differed from their rows and were repaired."""
TTL = 30 * 86_400


def add(redis: Redis, counts: Counter[str]) -> None:
    if not any(counts.values()):
        return
    key = Keys().totals
    pipeline = redis.pipeline(transaction=True)  # all or nothing: after an error the counts are kept for the next time
    for name, count in (+counts).items():
        pipeline.hincrby(key, name, count)
    pipeline.expire(key, TTL)
    pipeline.execute()
    counts.clear()


def read(redis: Redis) -> dict[str, int]:
    found: Any = redis.hgetall(Keys().totals)
    return {name.decode(): int(count) for name, count in found.items()}
