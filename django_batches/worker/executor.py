"""An executor: takes a job, runs it, tells its outcome and takes the next in one call to Redis. It lives long.

It never decides about statuses: the row may know better by the time the outcome arrives.
"""

import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Semaphore
from typing import Any

from django.db import Error, connections
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Worker
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.timeouts import JobTimeoutException

from ..conf import settings
from ..connection import client
from ..execution import HELD_UP, Message, is_current, perform, record_directly, unreadable
from ..outcomes import Kind, Outcome
from ..scripts import Scripts, Taken
from .board import Board, Occupant
from .hygiene import Hygiene
from .processes import die_with, resident

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
STOP_ORDINARY = signal.SIGUSR1
"""Asks an executor to stop the ordinary RQ job that it runs."""


@dataclass(frozen=True)
class Post:
    """The place of an executor: its slot on the board and what it is told to work on."""

    slot: int
    name: str
    queues: Sequence[str]
    board: Board
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
        self._hygiene = Hygiene()
        self._jobs = 0
        self._ordinary: Redis | None = None
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
            begun = time.monotonic()
            self._done = self._execute(taken, begun)
            self._seconds += time.monotonic() - begun
        elif taken.kind == "rq":
            self._count()
            self._execute_ordinary(taken)
        elif taken.kind == "retired" or leaves:
            return "leave"
        elif wants and self._post.budget is not None:
            self._post.budget.release()
        return taken.kind

    def _count(self) -> None:
        self._jobs += 1
        self._post.board.count(self._post.slot)

    def _reserve(self) -> bool:
        """A job of the budget of all executors together, for the next turn."""
        budget = self._post.budget
        return budget is None or budget.acquire(block=False)

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
            message = Message.of(taken.rq_id, taken.message)
        except (ValueError, RecursionError) as wrong:
            return unreadable(taken.rq_id, wrong)
        if self._must_ask(taken) and not self._is_current(message):
            # The row has ended or was dispatched again: told as vanished, which changes nothing then.
            return message.outcome(Kind.VANISHED, worker=self._post.name)
        self._count()
        self._post.board.write(self._post.slot, Occupant(taken.rq_id, taken.queue, begun, message.timeout))
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

    def _must_ask(self, taken: Taken) -> bool:
        """A server that was rolled back has old jobs in its lists; a roll-back breaks every connection.

        And a process that was frozen on its way may hold what another has been given since.
        """
        if time.monotonic() > self._asked_at + HELD_UP:
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

    def _execute_ordinary(self, taken: Taken) -> None:
        """A job of somebody else: by RQ's own worker, with a fork, its retries, dependents and callbacks."""
        connections.close_all()  # before the fork: two processes on one connection mix their answers
        redis = self._ordinary = self._ordinary or client()  # RQ raises the time-outs of a client it is given
        queue = Queue(taken.queue, connection=redis, serializer=settings().RQ_SERIALIZER)
        try:
            job = Job.fetch(taken.rq_id, connection=redis, serializer=settings().RQ_SERIALIZER)
        except NoSuchJobError:
            redis.lrem(queue.intermediate_queue_key, 1, taken.rq_id)
            return
        except Exception as error:
            # It stays where RQ's own upkeep looks for jobs that never started.
            logger.warning("The RQ job %s cannot be read: %s", taken.rq_id, error)
            return
        worker = _Forking([queue], name=self._post.name, connection=redis, serializer=settings().RQ_SERIALIZER)

        def stop(signum: int, frame: object) -> None:
            worker._stopped_job_id = job.id
            worker.kill_horse()

        signal.signal(STOP_ORDINARY, stop)
        self._post.board.write(self._post.slot, Occupant(taken.rq_id, taken.queue, time.monotonic(), 0.0))
        worker.execute_job(job, queue)
        self._clean_up()

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


class _Forking(Worker):
    """RQ's worker for one ordinary job, whose horse does not outlive this process."""

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        assert self.pid is not None
        die_with(self.pid)
        super().main_work_horse(job, queue)


_WEARING = (MemoryError, JobTimeoutException)
