"""A table in shared memory: the job that each child of a supervisor runs, and whether the child should stop.

Each record has a checksum, so that a reader detects a half-written record. Such a record could combine the start of one
job with the timeout of another, and the supervisor would kill a job that is not overdue. Sequence numbers before and
after the record would not suffice: another processor may see the writes in a different order.
"""

import mmap
import multiprocessing
import struct
from dataclasses import dataclass
from zlib import crc32

_RECORD = struct.Struct("<L d d 200s 400s")
"""Checksum of the other fields, start, timeout, RQ id, queue."""
_CHECKSUM_SIZE = 4


@dataclass(frozen=True)
class RunningJob:
    """The job that an executor runs."""

    rq_id: str
    queue: str
    started: float
    """A value of `time.monotonic()`, which is the same clock in all processes of a host."""
    timeout: float
    """Seconds; 0 for an RQ job that belongs to no batch, whose timeout RQ enforces."""


def _record(job: RunningJob) -> bytes:
    body = _RECORD.pack(0, job.started, job.timeout, job.rq_id.encode(), job.queue.encode())[_CHECKSUM_SIZE:]
    return crc32(body).to_bytes(_CHECKSUM_SIZE, "little") + body


_EMPTY = _record(RunningJob("", "", 0.0, 0.0))


class SlotTable:
    """For each slot: the running job, the stop flag, the number of started jobs and a reservation for one more."""

    def __init__(self, slots: int, max_jobs: int | None = None) -> None:
        self.all = range(slots)
        self._records = mmap.mmap(-1, slots * _RECORD.size)
        self.should_stop = memoryview(mmap.mmap(-1, slots)).cast("?")
        """By slot: whether its child should exit after its current work."""
        self.started = memoryview(mmap.mmap(-1, slots * 8)).cast("Q")
        """By slot: how many jobs its executors have started, including those that were replaced."""
        self._reserved = memoryview(mmap.mmap(-1, slots)).cast("?")
        self._budget = multiprocessing.get_context("fork").Semaphore(max_jobs) if max_jobs else None
        for slot in self.all:
            self.clear(slot)

    def write(self, slot: int, job: RunningJob | None) -> None:
        """Sets the running job of a slot. While the slot has an executor, only that executor may call this."""
        self._records[slot * _RECORD.size : (slot + 1) * _RECORD.size] = _record(job) if job else _EMPTY

    def read(self, slot: int) -> RunningJob | None:
        for _ in range(100):
            record = self._records[slot * _RECORD.size : (slot + 1) * _RECORD.size]
            checksum, started, timeout, rq_id, queue = _RECORD.unpack(record)
            if checksum == crc32(record[_CHECKSUM_SIZE:]):
                name = rq_id.rstrip(b"\0").decode()
                return RunningJob(name, queue.rstrip(b"\0").decode(), started, timeout) if name else None
        return None  # the executor died while it wrote the record

    def reserve(self, slot: int) -> bool:
        """Reserves one of `max_jobs` for the executor of this slot. Returns False if none is left."""
        if self._budget is None:
            return True
        is_reserved = self._budget.acquire(block=False)
        self._reserved[slot] = is_reserved
        return is_reserved

    def count(self, slot: int) -> None:
        """Counts a job that the executor of this slot has started. This uses up the reservation."""
        self.started[slot] += 1
        self._reserved[slot] = False

    def give_back(self, slot: int) -> None:
        """Gives back the reservation of this slot, if it was not used to start a job."""
        if self._budget is not None and self._reserved[slot]:
            self._reserved[slot] = False
            self._budget.release()

    def clear(self, slot: int) -> None:
        """Empties a slot for its next child. The supervisor calls this when the previous child has ended."""
        self.write(slot, None)
        self.should_stop[slot] = self._reserved[slot] = False
