"""The supervisor: one thread that forks executors, the coordinator and RQ's chores, and looks after them.

It opens no database connection. It blocks its signals and waits for them, so that a child that dies is noticed at once
and nothing ever runs inside a signal handler.
"""

import gc
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Semaphore
from typing import Any

from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ..coordinator.loop import Coordinator
from ..coordinator.timer import Every
from ..transport.client import client, wake_coordinator
from ..transport.outcomes import Kind
from ..transport.scripts import Scripts
from . import rq_jobs, rq_maintenance
from .burst import Burst
from .executor import Executor, Post
from .processes import fork, resident, warn_of_threads
from .registration import Registration
from .slots import SlotTable

logger = logging.getLogger("django_batches")

RENEW = 10.0
"""Seconds between two renewals of the leases of 45 s."""
OVERRUN = 10.0
"""Seconds beyond its timeout after which a job that swallowed the alarm is killed."""
TICK = 0.2
SHORT_LIFE = 1.0
PATIENCE = 5.0
"""Seconds a leaving supervisor waits for a Redis that is away."""
_LEAVE = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_LEAVE, signal.SIGCHLD, signal.SIGALRM)


@dataclass(frozen=True)
class Plan:
    """The options of `manage.py batchworker`."""

    queues: Sequence[str] = ()
    workers: int = 1
    burst: bool = False
    max_jobs: int | None = None
    max_jobs_per_child: int | None = None
    name: str = ""
    grace: float | None = None
    """Seconds that running jobs have after SIGTERM; None for as long as they take."""
    max_memory_per_child: int | None = None
    """Bytes that an executor may hold."""


@dataclass
class Child:
    """A forked process."""

    pid: int
    slot: int
    name: str
    born: float = field(default_factory=time.monotonic)
    sentence: tuple[Kind, str, str] | None = None
    """Why we killed it: the outcome of its job, the message, and the job that was to be stopped."""


class Supervisor:
    """Runs until it is told to leave and all children are gone."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        base = plan.name or socket.gethostname()
        self._name = f"{base}.{os.getpid()}.{secrets.token_hex(2)}"
        self._born = 0
        self._board = SlotTable(plan.workers + 2)
        self._budget: Semaphore | None = (
            multiprocessing.get_context("fork").Semaphore(plan.max_jobs) if plan.max_jobs else None
        )
        self._executors: dict[int, Child] = {}
        self._coordinator: Child | None = None
        self._chores: Child | None = None
        self._burials: list[Child] = []
        # Short: while Redis is away, dead children must still be noticed.
        self._redis = client(socket_connect_timeout=1.0, socket_timeout=2.0, retry=Retry(NoBackoff(), 0))
        self._scripts = Scripts(self._redis)
        self._registration = Registration(self._redis, plan.queues)
        self._renewal = Every(RENEW)
        self._leaving_since: float | None = None
        """Also where it leaves by itself: spent, or with nothing left to do."""
        self._asked_at: float | None = None
        """When somebody asked it to leave."""
        self._cut_short_at: float | None = None
        """When its patience with running jobs was over."""
        self._away_since: float | None = None
        self._deaths: dict[int, float] = {}
        self._no_fork_until = 0.0

    def run(self) -> int:
        """The exit code: 0, or 1 where jobs had to be interrupted."""
        warn_of_threads()
        # A collection in a child would look through all that Django has loaded, and so copy each page of it.
        gc.collect()
        gc.freeze()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        where = ", ".join(self._plan.queues) or "all queues"
        logger.info("%s starts %d executors on %s.", self._name, self._plan.workers, where)
        interrupted = False
        try:
            while not self._has_left():
                self._keep_children()
                self._talk_to_redis()  # before the wait: RQ shall know an executor when its first job starts
                received = _wait_for_signal()
                if received in _LEAVE:
                    interrupted |= self._asked_to_leave(signal.Signals(received).name)
                if self._is_grace_over():
                    interrupted |= self._interrupt("the grace period is over")
                self._reap()
                self._kill_overrunning()
                self._kill_overgrown()
                self._kill_silent()
                self._leave_if_spent()
        finally:
            self._kill_all()
        logger.info("%s has left.", self._name)
        return 1 if interrupted else 0

    def _keep_children(self) -> None:
        if self._leaving_since is not None:
            self._dismiss()
        elif time.monotonic() > self._no_fork_until:
            try:
                self._fill_posts()
            except OSError as error:  # no memory or no process left: those that are there must not end for that
                logger.error("%s cannot start a process (%s); it tries again.", self._name, error)
                self._no_fork_until = time.monotonic() + SHORT_LIFE

    def _fill_posts(self) -> None:
        if self._coordinator is None:
            self._coordinator = self._spawn(self._plan.workers, f"{self._name}.coordinator", self._coordinate)
        if self._chores is None and self._plan.workers:
            slot = self._plan.workers + 1
            self._chores = self._spawn(slot, f"{self._name}.chores", lambda: self._do_chores(slot))
        for slot in range(self._plan.workers):
            if slot not in self._executors and time.monotonic() > self._deaths.get(slot, 0.0):
                self._executors[slot] = self._spawn_executor(slot)
                self._renewal.soon()

    def _spawn_executor(self, slot: int) -> Child:
        self._born += 1
        name = f"{self._name}.{self._born}"
        plan, supervisor = self._plan, os.getpid()

        def work() -> None:
            limits = plan.max_jobs_per_child, self._budget, plan.max_memory_per_child
            Executor(Post(slot, name, plan.queues, self._board, supervisor, *limits)).run()

        return self._spawn(slot, name, work)

    def _spawn(self, slot: int, name: str, work: Callable[[], None]) -> Child:
        self._board.clear(slot)
        return Child(fork(work, name), slot, name)

    def _coordinate(self) -> None:
        slot = self._plan.workers
        burst = Burst(self._plan.queues) if self._plan.burst else None
        Coordinator(
            f"{self._name}.coordinator",
            lambda: self._board.should_stop(slot) or (burst is not None and not self._is_busy() and burst.is_over()),
        ).run()

    def _is_busy(self) -> bool:
        """Whether a job runs: an ordinary one may put its dependents, or itself, into the queue at its end."""
        return any(self._board.read(slot) for slot in range(self._plan.workers))

    def _do_chores(self, slot: int) -> None:
        rq_maintenance.run(self._plan.queues, lambda: self._board.should_stop(slot))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._died(pid, os.waitstatus_to_exitcode(status))

    def _died(self, pid: int, code: int) -> None:
        if self._coordinator and self._coordinator.pid == pid:
            self._coordinator_died(code)
        elif self._chores and self._chores.pid == pid:
            self._chores = None
        elif child := next((child for child in self._executors.values() if child.pid == pid), None):
            self._executor_died(child, code)

    def _coordinator_died(self, code: int) -> None:
        self._coordinator = None
        if self._plan.burst and code == 0 and self._leaving_since is None:
            logger.info("%s has nothing left to do.", self._name)
            self._leaving_since = time.monotonic()
        elif code:
            logger.error("The coordinator of %s died (%s)%s", self._name, _describe(code), self._and_then())
            time.sleep(TICK)

    def _executor_died(self, child: Child, code: int) -> None:
        del self._executors[child.slot]
        if self._budget and self._board.has_reserved(child.slot):
            self._budget.release()  # or one job less would be started, and it would wait for that for ever
        if child.sentence is None and code:
            occupant = self._board.read(child.slot)
            what = f" in job {occupant.rq_id}" if occupant else ""
            logger.error("%s died%s (%s)%s", child.name, what, _describe(code), self._and_then())
            child.sentence = (Kind.KILLED, f"its process died: {_describe(code)}", "")
        elif child.sentence is None:
            # It left by itself. With a job on the board user code has ended the process; else nothing was started.
            kind = Kind.KILLED if self._board.read(child.slot) else Kind.VANISHED
            child.sentence = (kind, "its process ended.", "")
        self._burials.append(child)
        if code and time.monotonic() - child.born < SHORT_LIFE:
            self._deaths[child.slot] = time.monotonic() + SHORT_LIFE

    def _and_then(self) -> str:
        return "; another one starts." if self._leaving_since is None else "; the worker leaves without it."

    def _kill_overrunning(self) -> None:
        now = time.monotonic()
        for child in self._executors.values():
            job = self._board.read(child.slot)
            if job and job.timeout and now > job.started + job.timeout + OVERRUN:
                error = f"the job ran for more than its timeout of {job.timeout:.0f} s and had to be killed."
                self._kill(child, Kind.TIMEOUT, error, job.rq_id)

    def _kill_overgrown(self) -> None:
        limit = self._plan.max_memory_per_child
        if not limit:
            return
        for child in self._executors.values():
            job = self._board.read(child.slot)
            if job and job.timeout and (held := resident(child.pid)) > limit:
                error = f"its process held {held >> 20} MB, more than --max-memory-per-child ({limit >> 20} MB)."
                self._kill(child, Kind.KILLED, error, job.rq_id)
                logger.error("%s is killed in job %s: %s", child.name, job.rq_id, error)

    def _kill(self, child: Child, kind: Kind, error: str, stopped: str = "") -> None:
        if child.sentence is None:
            child.sentence = (kind, error, stopped)
            os.kill(child.pid, signal.SIGKILL)

    def _talk_to_redis(self) -> None:
        try:
            self._bury()
            for worker, payload in self._registration.commands():
                self._obey(worker, payload)
            if self._renewal.is_due():
                self._scripts.renew(self._leases())
                self._registration.renew((child.name, child.pid) for child in self._executors.values())
            self._away_since = None
        except (RedisError, OSError) as error:
            logger.debug("%s cannot reach Redis: %s", self._name, error)
            self._away_since = self._away_since or time.monotonic()
            if self._leaving_since and time.monotonic() > self._away_since + PATIENCE:
                self._burials.clear()  # the leases run out, and the reconciler finds the jobs
            self._registration.forget_connection()
            self._redis.connection_pool.disconnect()  # the server may be a replica by now
            self._renewal.soon(1.0)

    def _leases(self) -> list[tuple[str, str, str]]:
        leases = []
        for child in self._executors.values():
            job = self._board.read(child.slot)
            if job and job.timeout:  # RQ's own worker keeps the lease of an ordinary job
                leases.append((child.name, job.rq_id, job.queue))
        return leases

    def _bury(self) -> None:
        while self._burials:
            child = self._burials[0]
            kind, error, stopped = child.sentence or (Kind.VANISHED, "its process ended.", "")
            self._scripts.bury(child.name, kind, error, stopped=stopped)
            self._registration.remove(child.name)
            self._burials.pop(0)

    def _obey(self, worker: str, payload: dict[str, Any]) -> None:
        """RQ's commands to a worker: stop-job, stop-execution, kill-horse, shutdown."""
        child = next((child for child in self._executors.values() if child.name == worker), None)
        if child is None:
            return
        command, asked = payload.get("command"), str(payload.get("job_id", ""))
        logger.info("%s obeys %s %s.", worker, command, asked)
        job = self._board.read(child.slot)
        if command in ("stop-job", "stop-execution"):
            if job and job.rq_id == asked and not job.timeout:
                os.kill(child.pid, rq_jobs.STOP)
            elif job and job.rq_id == asked:
                self._kill(child, Kind.STOPPED, "it was stopped on request.", asked)
        elif command == "kill-horse":
            self._kill(child, Kind.KILLED, "it was killed on request.")
        elif command == "shutdown" and self._asked_at is None:
            self._asked_to_leave("shutdown")  # RQ sends one to each worker: the second is no impatience

    def _asked_to_leave(self, why: str) -> bool:
        if self._asked_at is not None:
            return self._interrupt(f"{why} came again")
        logger.info("%s got %s: it finishes the jobs at hand and leaves.", self._name, why)
        self._asked_at = time.monotonic()
        self._leaving_since = self._leaving_since or self._asked_at
        return False

    def _leave_if_spent(self) -> None:
        limit = self._plan.max_jobs
        if limit and self._leaving_since is None:
            started = sum(self._board.counted(slot) for slot in range(self._plan.workers))
            if started >= limit:
                logger.info("%s has started %d jobs and leaves.", self._name, started)
                self._leaving_since = time.monotonic()

    def _is_grace_over(self) -> bool:
        grace, since = self._plan.grace, self._asked_at
        return grace is not None and since is not None and time.monotonic() > since + grace

    def _interrupt(self, why: str) -> bool:
        self._cut_short_at = self._cut_short_at or time.monotonic()
        busy = [child for child in self._executors.values() if child.sentence is None]
        if busy:
            logger.warning("%s interrupts its jobs: %s. They run again elsewhere.", self._name, why)
        for child in busy:
            self._kill(child, Kind.INTERRUPTED, "its worker was shut down while it ran.")
        return bool(busy)

    def _kill_silent(self) -> None:
        """Where somebody does not wait any longer: chores and coordinator may hang on a server that does not answer."""
        if self._cut_short_at is None or time.monotonic() < self._cut_short_at + PATIENCE or self._executors:
            return
        for child in (self._chores, self._coordinator):
            if child:
                os.kill(child.pid, signal.SIGKILL)

    def _dismiss(self) -> None:
        """Executors and chores first; the coordinator last, once the outcomes of all executors are told."""
        for child in self._executors.values():
            self._board.stop(child.slot)
        if self._chores:
            self._board.stop(self._chores.slot)
        if self._coordinator and not self._executors and not self._burials:
            self._board.stop(self._coordinator.slot)
            wake_coordinator()

    def _has_left(self) -> bool:
        leaving = self._leaving_since is not None
        return leaving and not (self._executors or self._coordinator or self._chores or self._burials)

    def _kill_all(self) -> None:
        for child in [*self._executors.values(), self._coordinator, self._chores]:
            if child:
                os.kill(child.pid, signal.SIGKILL)


def _wait_for_signal() -> int:
    """The next of the blocked signals, SIGALRM after a tick.

    Not `sigtimedwait`: interrupted (SIGSTOP and SIGCONT do that) after its time is over, it gives a signal made up of
    uninitialised memory.
    """
    signal.setitimer(signal.ITIMER_REAL, TICK)
    received = signal.sigwait(_SIGNALS)
    # Or it would ring before the next wait, and a SIGTERM, which has a higher number, would stay behind it.
    signal.setitimer(signal.ITIMER_REAL, 0)
    return received


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal, which has no name
        return f"signal {-code}"
