"""An executor: takes a job, runs it, tells its outcome and takes the next in one call to Redis. It lives long.

It never decides about statuses: the row may know better by the time the outcome arrives.
"""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Semaphore
from typing import Any

from django.db import Error, connections
from redis.exceptions import RedisError
from rq.timeouts import JobTimeoutException

from ..execution.runner import HELD_UP, is_current, perform, record_directly, unreadable
from ..transport.client import client
from ..transport.message import Message
from ..transport.outcomes import Kind, Outcome
from ..transport.scripts import Scripts, Taken
from .cleanup import Cleanup
from .processes import resident
from .rq_jobs import OrdinaryJobs
from .slots import RunningJob, SlotTable

logger = logging.getLogger("django_batches")

STALE = 60.0
"""Seconds after its push from which the row is asked before a job is started."""
MARGIN = 5.0
"""Seconds by which the clocks of two Redis servers may differ in a failover."""
TELL = 1.0
"""Seconds after which a busy executor tells RQ how long it has worked."""
FULL = 0.75
"""Share of the memory it may hold above which an executor is replaced between two jobs."""
IDLE_BLOCK = 500
"""Milliseconds an idle executor waits for the wake stream before it looks for ordinary RQ jobs."""


@dataclass(frozen=True)
class Post:
    """The place of an executor: its slot on the board and what it is told to work on."""

    slot: int
    name: str
    queues: Sequence[str]
    board: SlotTable
    supervisor: int
    """Process id."""
    max_jobs: int | None = None
    """Jobs after which this process is replaced."""
    budget: Semaphore | None = None
    """Jobs left for all executors together."""
    max_memory: int | None = None
    """Bytes above which the supervisor kills this process in the middle of a job."""


class Executor:
    """The loop of one executor process."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._connected_at = float("inf")
        self._asked_at = 0.0
        """When it last asked Redis for a job, by its monotonic clock."""
        self._redis = client(redis_connect_func=self._connected)
        self._scripts = Scripts(self._redis)
        self._woken: Any = "0-0"
        self._hygiene = Cleanup()
        self._jobs = 0
        self._ordinary = OrdinaryJobs(post.name, post.board, post.slot)
        self._taken = Taken("idle")
        self._done: Outcome | None = None
        self._seconds = 0.0
        """That it has worked and RQ has not been told."""
        self._told_at = 0.0
        self._worn = False
        """This process must be replaced: what ran in it may have broken it."""

    def run(self) -> None:
        """Works until told to stop, until worn, or until `max_jobs`."""
        while (kind := self.step()) != "leave":
            if kind in ("idle", "suspended"):
                self._idle(kind)

    def step(self) -> str:
        """One turn and the job it gave, if any: "job", "rq", "idle", "suspended", or "leave"."""
        leaves = self._should_leave()
        wants = not leaves and self._reserve()
        taken = self._turn(wants)
        self._taken, self._done = taken, None
        if taken.kind == "job":
            begun, jobs = time.monotonic(), self._jobs
            self._done = self._execute(taken, begun)
            self._seconds += time.monotonic() - begun
            if self._jobs == jobs:  # it was not started
                self._give_back()
        elif taken.kind == "rq":
            self._count()
            if self._ordinary.run(taken):
                self._clean_up()
        elif taken.kind == "retired" or leaves:
            return "leave"
        elif wants:
            self._give_back()
        return taken.kind

    def _count(self) -> None:
        self._jobs += 1
        self._post.board.count(self._post.slot)
        if self._post.budget is not None:
            self._post.board.reserve(self._post.slot, False)

    def _reserve(self) -> bool:
        """A job of the budget of all executors together, for the next turn."""
        budget = self._post.budget
        if budget is None:
            return True
        has_one = budget.acquire(block=False)
        self._post.board.reserve(self._post.slot, has_one)
        return has_one

    def _give_back(self) -> None:
        if self._post.budget is not None:
            self._post.board.reserve(self._post.slot, False)
            self._post.budget.release()

    def _should_leave(self) -> bool:
        post = self._post
        is_spent = post.max_jobs is not None and self._jobs >= post.max_jobs
        return self._worn or is_spent or self._is_overgrown() or post.board.should_stop(post.slot) or self._is_orphan()

    def _is_overgrown(self) -> bool:
        """Replaced in time, so that no job is killed for what those before it have left in memory."""
        limit = self._post.max_memory
        return limit is not None and self._jobs > 0 and resident(os.getpid()) > FULL * limit

    def _is_orphan(self) -> bool:
        return os.getppid() != self._post.supervisor

    def _turn(self, take: bool) -> Taken:
        """One call to Redis, repeated until it gets through; the outcome goes to the database meanwhile."""
        self._post.board.write(self._post.slot, None)
        done = self._done
        finished = self._taken.rq_id if self._taken.kind == "job" else ""
        pause, is_recorded = 0.1, False
        while True:
            # Not with every job: adding a float to RQ's record costs Redis as much as a quarter of the rest.
            is_due = not finished or time.monotonic() > self._told_at + TELL
            seconds = self._seconds if is_due else 0.0
            self._asked_at = time.monotonic()
            try:
                taken = self._scripts.turn(
                    self._post.name,
                    self._post.queues,
                    take=take,
                    finished=finished,
                    outcome=done,
                    queue=self._taken.queue,
                    seconds=seconds,
                )
                if seconds:
                    self._seconds, self._told_at = 0.0, time.monotonic()
                return taken
            except (RedisError, OSError) as error:
                if pause == 0.1:
                    logger.warning("%s cannot reach Redis (%s); it tries on.", self._post.name, error)
                if self._is_orphan():
                    os._exit(1)
                if done is not None and not is_recorded and pause > 1.0:
                    is_recorded = record_directly(done)
                if (done is None or is_recorded) and self._post.board.should_stop(self._post.slot):
                    return Taken("retired")
                time.sleep(pause)
                pause = min(pause * 2, 2.0)

    def _execute(self, taken: Taken, begun: float) -> Outcome | None:
        try:
            message = Message.loads(taken.rq_id, taken.message)
        except (ValueError, RecursionError) as wrong:
            return unreadable(taken.rq_id, wrong)
        if self._must_ask(taken, message) and not self._is_current(message):
            # The row has ended or was dispatched again: told as vanished, which changes nothing then.
            return message.outcome(Kind.VANISHED, worker=self._post.name)
        self._count()
        self._post.board.write(self._post.slot, RunningJob(taken.rq_id, taken.queue, begun, message.timeout))
        outcome, error = perform(message, self._post.name)
        if error is not None and (not isinstance(error, Exception) or isinstance(error, _WEARING)):
            self._worn = True
        self._clean_up()
        return outcome

    def _clean_up(self) -> None:
        try:
            self._hygiene.restore()
        except Exception:
            # The outcome of the job must be told all the same.
            logger.exception("%s cannot be cleaned after a job; it is replaced.", self._post.name)
            self._worn = True

    def _must_ask(self, taken: Taken, message: Message) -> bool:
        """A server that was rolled back has old jobs in its lists; a roll-back breaks every connection.

        And a process that was frozen on its way may hold what another has been given since; and an earlier run, taken
        for lost, may have told its success to the database itself.
        """
        if message.dispatch > 1 or time.monotonic() > self._asked_at + HELD_UP:
            return True
        return taken.pushed_at < self._connected_at + MARGIN or taken.pushed_at < taken.now - STALE

    def _is_current(self, message: Message) -> bool:
        try:
            return is_current(message)
        except Error as error:
            # Not known, so not started: the reconciler brings it back if the row still waits for it.
            logger.warning("The row of job %s cannot be asked (%s).", message.job_id, error)
            connections.close_all()
            return False

    def _idle(self, kind: str) -> None:
        if kind == "suspended":
            time.sleep(0.5)
            return
        try:
            found: Any = self._redis.xread({self._scripts.keys.wake: self._woken}, block=IDLE_BLOCK)
        except (RedisError, OSError):
            time.sleep(0.1)
            return
        if found:
            entries = next(iter(found.values()))[0] if isinstance(found, dict) else found[0][1]
            self._woken = entries[-1][0]

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        connection.send_command("TIME")
        self._connected_at = float(connection.read_response()[0])


_WEARING = (MemoryError, JobTimeoutException)
