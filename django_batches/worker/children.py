"""The child processes of a supervisor."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from ..transport.outcomes import Kind
from .slots import RunningJob, SlotTable

COORDINATOR, MAINTENANCE, FIRST_EXECUTOR = 0, 1, 2
"""The slots of the child processes: the coordinator, RQ's maintenance, and from the third slot on the executors."""


@dataclass(frozen=True)
class KillReason:
    """Why an executor was killed or died. The outcome of the job that it was running is made from this."""

    kind: Kind
    error: str
    stopped: str = ""
    """RQ id of the job to kill, or empty. If the executor was already running another job, that job runs again."""


@dataclass
class Child:
    """A forked process."""

    pid: int
    slot: int
    name: str
    started: float = field(default_factory=time.monotonic)
    kill_reason: KillReason | None = None

    def kill(self, reason: KillReason) -> None:
        """Kills the process. Does nothing if it was killed before, so that the first reason counts."""
        if self.kill_reason is None:
            self.kill_reason = reason
            os.kill(self.pid, signal.SIGKILL)


class Children(dict[int, Child]):
    """The living children, by slot."""

    def __init__(self, slots: SlotTable) -> None:
        self._slots = slots

    def executors(self) -> list[Child]:
        return [child for slot, child in self.items() if slot >= FIRST_EXECUTOR]

    def running_jobs(self) -> Iterator[tuple[Child, RunningJob]]:
        """Yields each executor that runs a batch job, with the job. RQ's own worker supervises other RQ jobs."""
        for child in self.executors():
            job = self._slots.read(child.slot)
            if job and job.timeout:
                yield child, job

    def pop_ended(self) -> Iterator[tuple[Child, int]]:
        """Removes the children that have ended, and yields each with its exit code."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if child := next((child for child in self.values() if child.pid == pid), None):
                    del self[child.slot]
                    yield child, os.waitstatus_to_exitcode(status)
