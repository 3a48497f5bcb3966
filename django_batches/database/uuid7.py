"""Creates UUIDv7 keys, which strictly increase within a process.

Keys sort in the order of their creation, even within a millisecond or if the clock steps back. A counter in the bits
after the timestamp ensures this (RFC 9562, section 6.2, method 1).
"""

import os
import threading
import time
from uuid import UUID

_COUNTER_BITS = 18
_lock = threading.Lock()
_last = 0


def _reset_lock() -> None:
    # If another thread of the parent has the lock at the moment of the fork, the child's copy is never released.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_reset_lock)


def uuid7() -> UUID:
    """Returns a new UUIDv7 that is greater than all earlier ones of this process."""
    global _last
    with _lock:
        _last = stamp = max((time.time_ns() // 1_000_000) << _COUNTER_BITS, _last + 1)
    milliseconds, counter = divmod(stamp, 1 << _COUNTER_BITS)
    high, low = divmod(counter, 1 << 6)
    random = int.from_bytes(os.urandom(7))
    return UUID(int=(milliseconds << 80) | (7 << 76) | (high << 64) | (2 << 62) | (low << 56) | random)
