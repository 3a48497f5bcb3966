"""A table in shared memory: the job that each child of a supervisor runs, and whether the child should stop.

Each record has a checksum, so that a reader notices a half-written one. It could combine the start of one job with the
timeout of another, and the supervisor would kill the job as overdue. Sequence numbers before and after the record
would not do: a processor may show the writes to another one in any order.
"""

import mmap
import multiprocessing
import struct
from dataclasses import dataclass
from zlib import crc32

_JOB = struct.Struct("<d d 200s 400s")
_CHECKSUM = struct.Struct("<Q")
_RECORD = _CHECKSUM.size + _JOB.size
_NUMBER = struct.Struct("<Q")
_STOP, _STARTED, _RESERVED = range(_RECORD, _RECORD + 3 * _NUMBER.size, _NUMBER.size)
"""Offsets of the numbers that follow the record."""
_SLOT = _RECORD + 3 * _NUMBER.size
_READS = 100


@dataclass(frozen=True)
class RunningJob:
    """The job that an executor runs."""

    rq_id: str
    queue: str
    started: float
    """`time.monotonic()`: the same clock in all processes of a host."""
    timeout: float
    """Seconds; 0 for an RQ job that belongs to no batch, whose timeout RQ enforces."""


def _record(job: RunningJob) -> bytes:
    body = _JOB.pack(job.started, job.timeout, job.rq_id.encode(), job.queue.encode())
    return _CHECKSUM.pack(crc32(body)) + body


_EMPTY = _record(RunningJob("", "", 0.0, 0.0))


class SlotTable:
    """The running job of each slot, its stop flag and its share of `--max-jobs`."""

    def __init__(self, slots: int, max_jobs: int | None = None) -> None:
        self.all = range(slots)
        self._memory = mmap.mmap(-1, slots * _SLOT)
        self._budget = multiprocessing.get_context("fork").Semaphore(max_jobs) if max_jobs else None
        for slot in self.all:
            self.clear(slot)

    def write(self, slot: int, job: RunningJob | None) -> None:
        """Only the executor of this slot may call it."""
        begin = slot * _SLOT
        self._memory[begin : begin + _RECORD] = _record(job) if job else _EMPTY

    def read(self, slot: int) -> RunningJob | None:
        """The job that the executor of this slot runs, or None."""
        begin = slot * _SLOT
        for _ in range(_READS):
            record = self._memory[begin : begin + _RECORD]
            body = record[_CHECKSUM.size :]
            if _CHECKSUM.unpack_from(record) == (crc32(body),):
                started, timeout, rq_id, queue = _JOB.unpack(body)
                name = rq_id.rstrip(b"\0").decode()
                return RunningJob(name, queue.rstrip(b"\0").decode(), started, timeout) if name else None
        return None  # its process died while it wrote

    def reserve(self, slot: int) -> bool:
        """Reserves one of `max_jobs` for the executor of this slot. Returns False if none is left."""
        if self._budget is None:
            return True
        is_reserved = self._budget.acquire(block=False)
        self._set(slot, _RESERVED, is_reserved)
        return is_reserved

    def count(self, slot: int) -> None:
        """The executor of this slot has started a job."""
        self._set(slot, _STARTED, self.started(slot) + 1)
        self._set(slot, _RESERVED, 0)

    def give_back(self, slot: int) -> None:
        """Frees the reservation of this slot if no job was started."""
        if self._budget is not None and self._get(slot, _RESERVED):
            self._set(slot, _RESERVED, 0)
            self._budget.release()

    def started(self, slot: int) -> int:
        """How many jobs were started in this slot, by its former executors too."""
        return self._get(slot, _STARTED)

    def clear(self, slot: int) -> None:
        """Prepares a slot for its next child; the supervisor calls it when the last one has ended."""
        self._memory[slot * _SLOT : slot * _SLOT + _RECORD] = _EMPTY
        self._set(slot, _STOP, 0)
        self._set(slot, _RESERVED, 0)

    def stop(self, slot: int) -> None:
        """Makes the child of this slot exit after its current work."""
        self._set(slot, _STOP, 1)

    def should_stop(self, slot: int) -> bool:
        return bool(self._get(slot, _STOP))

    def _get(self, slot: int, offset: int) -> int:
        return int(_NUMBER.unpack_from(self._memory, slot * _SLOT + offset)[0])

    def _set(self, slot: int, offset: int, number: int) -> None:
        _NUMBER.pack_into(self._memory, slot * _SLOT + offset, number)
