"""UUIDv7 keys, strictly increasing within a process.

Keys sort in the order in which they were made, even within a millisecond and if the clock steps back (RFC 9562,
section 6.2, method 1: a counter in the bits after the timestamp).
"""

import os
import threading
import time
from uuid import UUID

_COUNTER_BITS = 18
_lock = threading.Lock()
_last = 0


def _reset_lock() -> None:
    # Another thread of the parent may have the lock at the moment of the fork; the child's copy would stay locked.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_reset_lock)


def uuid7() -> UUID:
    """A new UUIDv7, greater than every earlier one of this process."""
    global _last
    with _lock:
        _last = stamp = max((time.time_ns() // 1_000_000) << _COUNTER_BITS, _last + 1)
    milliseconds, counter = divmod(stamp, 1 << _COUNTER_BITS)
    high, low = divmod(counter, 1 << 6)
    random = int.from_bytes(os.urandom(7))
    return UUID(int=(milliseconds << 80) | (7 << 76) | (high << 64) | (2 << 62) | (low << 56) | random)
