"""Memory shared by the supervisor and its children: what each executor runs, and who shall stop.

A record carries a checksum, by which a reader sees that he has read half of one and half of the next: as a job of
whose time nothing is left, such a mixture would be killed. Numbers before and after the record are not enough, because
no processor promises in which order the other one sees them.
"""

import mmap
import struct
from dataclasses import dataclass
from zlib import crc32

_BODY = struct.Struct("<d d 200s 400s")
_CHECKSUM = struct.Struct("<Q")
_RECORD_SIZE = _CHECKSUM.size + _BODY.size
_STOP = struct.Struct("<Q")
_COUNT = struct.Struct("<Q")
_RESERVED = struct.Struct("<Q")
_TRIES = 100


@dataclass(frozen=True)
class RunningJob:
    """The job an executor runs."""

    rq_id: str
    queue: str
    started: float
    """`time.monotonic()`, the same clock in all processes of the host."""
    timeout: float
    """Seconds; 0 for none of our business."""


def _record(job: RunningJob) -> bytes:
    body = _BODY.pack(job.started, job.timeout, job.rq_id.encode(), job.queue.encode())
    return _CHECKSUM.pack(crc32(body)) + body


_EMPTY = _record(RunningJob("", "", 0.0, 0.0))


class SlotTable:
    """A record, a stop flag, a count of jobs and a reservation per slot."""

    def __init__(self, slots: int) -> None:
        self._size = _RECORD_SIZE + _STOP.size + _COUNT.size + _RESERVED.size
        self._memory = mmap.mmap(-1, max(1, slots) * self._size)
        for slot in range(slots):
            self.clear(slot)

    def write(self, slot: int, occupant: RunningJob | None) -> None:
        """Called by the executor of this slot only."""
        begin = slot * self._size
        self._memory[begin : begin + _RECORD_SIZE] = _record(occupant) if occupant else _EMPTY

    def read(self, slot: int) -> RunningJob | None:
        """What the executor of this slot runs now, or None."""
        begin = slot * self._size
        for _ in range(_TRIES):
            record = self._memory[begin : begin + _RECORD_SIZE]
            body = record[_CHECKSUM.size :]
            if _CHECKSUM.unpack_from(record) == (crc32(body),):
                started, timeout, rq_id, queue = _BODY.unpack(body)
                name = rq_id.rstrip(b"\0").decode()
                return RunningJob(name, queue.rstrip(b"\0").decode(), started, timeout) if name else None
        return None  # its process died while it wrote

    def count(self, slot: int) -> None:
        """One more job was started by the executor of this slot."""
        place = slot * self._size + _RECORD_SIZE + _STOP.size
        _COUNT.pack_into(self._memory, place, self.counted(slot) + 1)

    def counted(self, slot: int) -> int:
        """How many jobs the executors of this slot have started, those before them included."""
        return int(_COUNT.unpack_from(self._memory, slot * self._size + _RECORD_SIZE + _STOP.size)[0])

    def reserve(self, slot: int, is_reserved: bool) -> None:
        """Whether the executor of this slot has taken a job from the budget of all that it has not started."""
        _RESERVED.pack_into(self._memory, (slot + 1) * self._size - _RESERVED.size, is_reserved)

    def has_reserved(self, slot: int) -> bool:
        return bool(_RESERVED.unpack_from(self._memory, (slot + 1) * self._size - _RESERVED.size)[0])

    def clear(self, slot: int) -> None:
        """For the next executor of this slot; called by the supervisor once the last one is gone."""
        begin = slot * self._size
        self._memory[begin : begin + _RECORD_SIZE + _STOP.size] = _EMPTY + bytes(_STOP.size)
        self.reserve(slot, False)

    def stop(self, slot: int) -> None:
        """Asks the child of this slot to leave after what it is at."""
        _STOP.pack_into(self._memory, slot * self._size + _RECORD_SIZE, 1)

    def should_stop(self, slot: int) -> bool:
        return bool(_STOP.unpack_from(self._memory, slot * self._size + _RECORD_SIZE)[0])
