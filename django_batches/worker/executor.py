"""A long-lived executor process. One call to Redis reports the outcome of its last job and takes its next job.

An executor never changes the status of a row. The coordinator does, if the row still expects the outcome's dispatch.
"""

import logging
import os
import time
from typing import Any

from redis.exceptions import RedisError
from rq.timeouts import JobTimeoutException

from ..execution.runner import DELAYED, check_row, perform, record_directly, unreadable
from ..transport.client import client
from ..transport.message import Message
from ..transport.outcomes import Outcome
from ..transport.scripts import Scripts, Taken
from . import rq_jobs
from .cleanup import Cleanup
from .options import Options
from .processes import resident_memory
from .slots import RunningJob, SlotTable

logger = logging.getLogger("django_batches")

STALE = 60.0
"""If a job was pushed more seconds ago than this, its executor checks its row before it starts the job."""
MARGIN = 5.0
"""Largest difference, in seconds, that is expected between the clocks of two Redis servers in a failover."""
REPORT = 1.0
"""While an executor is busy, seconds between two updates of the working time in RQ's record of it."""
FULL = 0.75
"""Share of `--max-memory-per-child` above which an executor is replaced between two jobs."""
IDLE_BLOCK = 500
"""Milliseconds that an idle executor waits for a wake-up before it looks for ordinary RQ jobs, which send none."""
_TAINTING = (MemoryError, JobTimeoutException)
"""Exceptions after which the process must be replaced, because they may have interrupted any code at any point."""


class Executor:
    """The loop of one executor process. `supervisor` is the supervisor's process id."""

    def __init__(self, options: Options, slots: SlotTable, slot: int, name: str, supervisor: int) -> None:
        self._options, self._slots, self._slot = options, slots, slot
        self._name, self._supervisor = name, supervisor
        self._connected_at = float("inf")
        """When the connection to Redis was made, by Redis' clock."""
        self._redis = client(redis_connect_func=self._connected)
        self._scripts = Scripts(self._redis)
        self._last_wake_up: Any = "0-0"
        self._cleanup = Cleanup()
        self._redis_for_rq = client()
        self._jobs_started = 0
        self._taken = Taken("idle")
        self._outcome: Outcome | None = None
        self._called_at = 0.0
        self._working_time = 0.0
        """Seconds of work that are not in RQ's record of this executor yet."""
        self._reported_at = 0.0
        self._is_tainted = False

    def run(self) -> None:
        while (kind := self.step()) != "exit":
            if kind == "suspended":
                time.sleep(0.5)
            elif kind == "idle":
                self._wait_for_wake_up()

    def step(self) -> str:
        """Runs a job, if there is one. Returns "job", "rq" (an ordinary RQ job), "idle", "suspended" or "exit"."""
        should_exit = self._should_exit()
        taken = self._turn(take=not should_exit and self._slots.reserve(self._slot))
        self._taken, self._outcome, kind = taken, None, taken.kind
        if kind == "job":
            begun = time.monotonic()
            self._outcome = self._run(taken, begun)
            self._working_time += time.monotonic() - begun
        elif kind == "rq":
            self._start()
            if rq_jobs.run(taken, self._name, self._redis_for_rq, self._slots, self._slot):
                self._clean_up()
        elif kind == "retired" or should_exit:
            kind = "exit"
        self._slots.give_back(self._slot)
        return kind

    def _start(self, job: RunningJob | None = None) -> None:
        self._jobs_started += 1
        self._slots.count(self._slot)
        self._slots.write(self._slot, job)

    def _should_exit(self) -> bool:
        jobs, memory = self._options.max_jobs_per_child, self._options.max_memory_per_child
        if self._is_tainted or self._slots.should_stop[self._slot] or self._is_orphan():
            return True
        if jobs and self._jobs_started >= jobs:
            return True
        # Replace it before it reaches the limit, so that no job is killed for memory that earlier jobs left allocated.
        return bool(memory and self._jobs_started and resident_memory(os.getpid()) > FULL * memory)

    def _is_orphan(self) -> bool:
        return os.getppid() != self._supervisor

    def _turn(self, take: bool) -> Taken:
        """Repeats the call to Redis until it succeeds. If an outage lasts, also records the outcome in the database."""
        self._slots.write(self._slot, None)
        outcome, pause, is_recorded = self._outcome, 0.1, False
        while True:
            try:
                return self._call(take, outcome)
            except (RedisError, OSError) as error:
                if pause == 0.1:
                    logger.warning("%s cannot reach Redis (%s); retrying.", self._name, error)
                if self._is_orphan():
                    os._exit(1)
                if outcome is not None and not is_recorded and pause > 1.0:
                    is_recorded = record_directly(outcome)
                if (outcome is None or is_recorded) and self._slots.should_stop[self._slot]:
                    return Taken("retired")
                time.sleep(pause)
                pause = min(pause * 2, 2.0)

    def _call(self, take: bool, outcome: Outcome | None) -> Taken:
        finished = self._taken.rq_id if self._taken.kind == "job" else ""
        # Do not add the working time with every job: HINCRBYFLOAT costs Redis a quarter of the rest of the call.
        is_due = not finished or time.monotonic() > self._reported_at + REPORT
        seconds = self._working_time if is_due else 0.0
        self._called_at = time.monotonic()
        taken = self._scripts.turn(
            self._name, self._options.queues, take=take,
            finished=finished, queue=self._taken.queue, outcome=outcome, seconds=seconds,
        )  # fmt: skip
        if seconds:
            self._working_time, self._reported_at = 0.0, time.monotonic()
        return taken

    def _run(self, taken: Taken, begun: float) -> Outcome | None:
        try:
            message = Message.loads(taken.rq_id, taken.message)
        except (ValueError, RecursionError) as error:
            return unreadable(taken.rq_id, error)
        if self._must_check_row(taken, message) and (outcome := check_row(message, self._name)):
            return outcome
        self._start(RunningJob(taken.rq_id, taken.queue, begun, message.timeout))
        outcome, raised = perform(message, self._name)
        if raised is not None and (not isinstance(raised, Exception) or isinstance(raised, _TAINTING)):
            self._is_tainted = True
        self._clean_up()
        return outcome

    def _clean_up(self) -> None:
        try:
            self._cleanup.restore()
        except Exception:
            # Do not raise: the outcome of the job must still be reported.
            logger.exception("%s cannot clean up after a job; it is replaced.", self._name)
            self._is_tainted = True

    def _must_check_row(self, taken: Taken, message: Message) -> bool:
        """Returns True if the row may no longer expect this dispatch.

        * A job that was dispatched before: the earlier run, considered lost, may have reported success to the database.
        * A process that was frozen during its call to Redis: another executor may be running the job by now.
        * A Redis that was restored from an old dump has old jobs in its queues. A restore breaks all connections.
        """
        if message.dispatch > 1 or time.monotonic() > self._called_at + DELAYED:
            return True
        return taken.pushed_at < self._connected_at + MARGIN or taken.pushed_at < taken.now - STALE

    def _wait_for_wake_up(self) -> None:
        try:
            found: Any = self._redis.xread({self._scripts.keys.wake: self._last_wake_up}, block=IDLE_BLOCK)
        except (RedisError, OSError):
            time.sleep(0.1)
            return
        if found:
            entries = next(iter(found.values()))[0] if isinstance(found, dict) else found[0][1]
            self._last_wake_up = entries[-1][0]

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        connection.send_command("TIME")
        self._connected_at = float(connection.read_response()[0])
