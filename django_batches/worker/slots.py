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

_RECORD = struct.Struct("<L d d 200s 400s")
"""Checksum of the rest, start, timeout, RQ id, queue."""
_CHECKSUM = 4


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
    body = _RECORD.pack(0, job.started, job.timeout, job.rq_id.encode(), job.queue.encode())[_CHECKSUM:]
    return crc32(body).to_bytes(_CHECKSUM, "little") + body


_EMPTY = _record(RunningJob("", "", 0.0, 0.0))


class SlotTable:
    """The running job of each slot, its stop flag and its share of `--max-jobs`."""

    def __init__(self, slots: int, max_jobs: int | None = None) -> None:
        self.all = range(slots)
        self._records = mmap.mmap(-1, slots * _RECORD.size)
        self.should_stop = memoryview(mmap.mmap(-1, slots)).cast("?")
        """By slot: whether its child should exit after its current work."""
        self.started = memoryview(mmap.mmap(-1, slots * 8)).cast("Q")
        """By slot: how many jobs were started, by its former executors too."""
        self._reserved = memoryview(mmap.mmap(-1, slots)).cast("?")
        self._budget = multiprocessing.get_context("fork").Semaphore(max_jobs) if max_jobs else None
        for slot in self.all:
            self.clear(slot)

    def write(self, slot: int, job: RunningJob | None) -> None:
        """Only the executor of this slot may call it."""
        self._records[slot * _RECORD.size : (slot + 1) * _RECORD.size] = _record(job) if job else _EMPTY

    def read(self, slot: int) -> RunningJob | None:
        """The job that the executor of this slot runs, or None."""
        for _ in range(100):
            record = self._records[slot * _RECORD.size : (slot + 1) * _RECORD.size]
            checksum, started, timeout, rq_id, queue = _RECORD.unpack(record)
            if checksum == crc32(record[_CHECKSUM:]):
                name = rq_id.rstrip(b"\0").decode()
                return RunningJob(name, queue.rstrip(b"\0").decode(), started, timeout) if name else None
        return None  # its process died while it wrote

    def reserve(self, slot: int) -> bool:
        """Reserves one of `max_jobs` for the executor of this slot. Returns False if none is left."""
        if self._budget is None:
            return True
        is_reserved = self._budget.acquire(block=False)
        self._reserved[slot] = is_reserved
        return is_reserved

    def count(self, slot: int) -> None:
        """The executor of this slot has started a job."""
        self.started[slot] += 1
        self._reserved[slot] = False

    def give_back(self, slot: int) -> None:
        """Frees the reservation of this slot if no job was started."""
        if self._budget is not None and self._reserved[slot]:
            self._reserved[slot] = False
            self._budget.release()

    def clear(self, slot: int) -> None:
        """Prepares a slot for its next child; the supervisor calls it when the last one has ended."""
        self.write(slot, None)
        self.should_stop[slot] = self._reserved[slot] = False
