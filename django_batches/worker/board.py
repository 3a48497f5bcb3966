"""Memory shared by the supervisor and its children: what each executor runs, and who shall stop.

A record is written with a number before and after it, so that a reader sees whether it was changed meanwhile.
"""

import mmap
import struct
from dataclasses import dataclass

_BODY_FORMAT = "d d 200s 400s"
_RECORD = struct.Struct(f"<Q {_BODY_FORMAT} Q")
_NUMBER, _BODY = struct.Struct("<Q"), struct.Struct(f"<{_BODY_FORMAT}")
_STOP = struct.Struct("<B")
_COUNT = struct.Struct("<Q")
_TRIES = 100


@dataclass(frozen=True)
class Occupant:
    """The job an executor runs."""

    rq_id: str
    queue: str
    started: float
    """`time.monotonic()`, the same clock in all processes of the host."""
    timeout: float
    """Seconds; 0 for none of our business."""


_NOBODY = Occupant("", "", 0.0, 0.0)


class Board:
    """A record, a stop flag and a count of jobs per slot."""

    def __init__(self, slots: int) -> None:
        self._size = _RECORD.size + _STOP.size + _COUNT.size
        self._memory = mmap.mmap(-1, max(1, slots) * self._size)

    def write(self, slot: int, occupant: Occupant | None) -> None:
        """Called by the executor of this slot only."""
        memory, place = self._memory, slot * self._size
        number = _NUMBER.unpack_from(memory, place)[0] + 1
        _NUMBER.pack_into(memory, place, number)
        job = occupant or _NOBODY
        names = job.rq_id.encode(), job.queue.encode()
        _BODY.pack_into(memory, place + _NUMBER.size, job.started, job.timeout, *names)
        _NUMBER.pack_into(memory, place + _NUMBER.size + _BODY.size, number)

    def read(self, slot: int) -> Occupant | None:
        """What the executor of this slot runs now, or None."""
        for _ in range(_TRIES):
            before, started, timeout, rq_id, queue, after = _RECORD.unpack_from(self._memory, slot * self._size)
            if before == after:
                name = rq_id.rstrip(b"\0").decode()
                return Occupant(name, queue.rstrip(b"\0").decode(), started, timeout) if name else None
        return None  # its process died while it wrote

    def count(self, slot: int) -> None:
        """One more job was started by the executor of this slot."""
        place = slot * self._size + _RECORD.size + _STOP.size
        _COUNT.pack_into(self._memory, place, self.counted(slot) + 1)

    def counted(self, slot: int) -> int:
        """How many jobs the executors of this slot have started, those before them included."""
        return int(_COUNT.unpack_from(self._memory, slot * self._size + _RECORD.size + _STOP.size)[0])

    def clear(self, slot: int) -> None:
        """For the next executor of this slot; called by the supervisor once the last one is gone."""
        begin = slot * self._size
        self._memory[begin : begin + _RECORD.size + _STOP.size] = bytes(_RECORD.size + _STOP.size)

    def stop(self, slot: int) -> None:
        """Asks the child of this slot to leave after what it is at."""
        _STOP.pack_into(self._memory, slot * self._size + _RECORD.size, 1)

    def should_stop(self, slot: int) -> bool:
        return bool(_STOP.unpack_from(self._memory, slot * self._size + _RECORD.size)[0])
