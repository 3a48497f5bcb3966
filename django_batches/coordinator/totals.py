"""What the coordinators have counted, in Redis: numbers that only grow, for the metrics.

They begin again at 0 where Redis is emptied; what was counted within the last second before a crash is missing.
"""

from collections import Counter
from typing import Any

from redis import Redis

from ..transport.client import Keys

REPAIRS = "repairs"
"""Batches whose counters differed from their rows and were repaired."""
TTL = 30 * 86_400


def add(redis: Redis, counts: Counter[str]) -> None:
    """Adds the counts to the hash and forgets them."""
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
    """The counts since Redis was emptied last."""
    found: Any = redis.hgetall(Keys().totals)
    return {name.decode(): int(count) for name, count in found.items()}
