"""The supervisor forks the coordinator, RQ's maintenance and the executors. It replaces them and enforces their limits.

It has one thread and no database connection. It blocks signals and waits for them instead: it notices the death
of a child at once, and runs no code in a signal handler.
"""

import gc
import itertools
import logging
import math
import os
import secrets
import signal
import socket
import threading
import time
from typing import Any

from ..coordinator.loop import Coordinator
from ..transport.client import wake_coordinator
from ..transport.outcomes import Kind
from . import rq_jobs, rq_maintenance
from .burst import Burst
from .children import COORDINATOR, FIRST_EXECUTOR, MAINTENANCE, Child, Children, KillReason
from .executor import Executor
from .options import Options
from .processes import SHUTDOWN_SIGNALS, SIGNALS, describe_exit, fork, resident_memory, wait_for_signal
from .redis_link import PATIENCE, RedisLink
from .slots import SlotTable

logger = logging.getLogger("django_batches")

OVERRUN = 10.0
"""The supervisor kills a job that is still running this many seconds after its timeout."""
TICK = 0.2
"""Seconds that the supervisor waits for a signal in each turn."""
SHORT_LIFE = 1.0
"""If a child fails within this many seconds, it is replaced after the same time; a coordinator after `TICK`."""


class Supervisor:
    """Runs the worker until it shuts down and all its children have ended."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._name = f"{options.name or socket.gethostname()}.{os.getpid()}.{secrets.token_hex(2)}"
        self._executor_numbers = itertools.count(1)
        self._slots = SlotTable(FIRST_EXECUTOR + options.workers, options.max_jobs)
        self._children = Children(self._slots)
        self._redis = RedisLink(options.queues, self._children)
        self._is_shutting_down = False
        """Set by a shutdown request, and also when `--max-jobs` is reached or a burst is over."""
        self._is_shutdown_requested = False
        self._grace_ends = self._interrupted_at = math.inf
        self._has_interrupted_jobs = False
        self._not_before: dict[int, float] = {}

    def run(self) -> int:
        """Runs the worker. Returns the exit code: 1 if it has interrupted jobs, otherwise 0."""
        others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        if others:  # fork() does not copy threads, so a lock that one of them holds would stay locked in each child
            logger.warning("Threads are running before the worker forks (%s); start them lazily.", ", ".join(others))
        # Otherwise a garbage collection in a child would write to the memory that it shares, and so copy all of it.
        gc.collect()
        gc.freeze()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        queues = ", ".join(self._options.queues) or "all queues"
        logger.info("%s starts %d executors on %s.", self._name, self._options.workers, queues)
        try:
            while not self._is_shutting_down or self._children or self._redis.to_reap:
                self._turn()
        finally:
            self._kill_children()
        logger.info("%s has exited.", self._name)
        return 1 if self._has_interrupted_jobs else 0

    def _turn(self) -> None:
        if self._is_shutting_down:
            self._stop_children()
        else:
            self._start_children()
        # Register new executors before the wait: RQ must know an executor when its first job starts.
        for executor, payload in self._redis.exchange(is_shutting_down=self._is_shutting_down):
            self._obey(executor, payload)
        if (received := wait_for_signal(TICK)) in SHUTDOWN_SIGNALS:
            self._request_shutdown(signal.Signals(received).name)
        if time.monotonic() > self._grace_ends:
            self._interrupt("the grace period is over")
        for child, code in self._children.pop_ended():
            self._child_ended(child, code)
        self._enforce_limits()
        self._kill_unresponsive()
        self._exit_after_max_jobs()

    def _start_children(self) -> None:
        now = time.monotonic()
        for slot in self._slots.all:
            is_wanted = slot != MAINTENANCE or self._options.workers
            if is_wanted and slot not in self._children and now > self._not_before.get(slot, 0.0):
                try:
                    self._start_child(slot)
                except OSError as error:  # out of memory or process ids: the running children must continue
                    logger.error("%s cannot start a process (%s); retrying.", self._name, error)
                    self._not_before = dict.fromkeys(self._slots.all, now + SHORT_LIFE)
                    return

    def _start_child(self, slot: int) -> None:
        role = {COORDINATOR: "coordinator", MAINTENANCE: "maintenance"}.get(slot) or next(self._executor_numbers)
        name, supervisor = f"{self._name}.{role}", os.getpid()
        if slot >= FIRST_EXECUTOR:
            self._redis.renewal.soon()
        self._slots.clear(slot)
        self._children[slot] = Child(fork(lambda: self._work(slot, name, supervisor), name), slot, name)

    def _work(self, slot: int, name: str, supervisor: int) -> None:
        options, slots = self._options, self._slots
        if slot == COORDINATOR:
            burst = Burst(options.queues, slots) if options.burst else None
            Coordinator(name, lambda: slots.should_stop[slot] or bool(burst and burst.is_over())).run()
        elif slot == MAINTENANCE:
            rq_maintenance.run(options.queues, lambda: slots.should_stop[slot])
        else:
            Executor(options, slots, slot, name, supervisor).run()

    def _child_ended(self, child: Child, code: int) -> None:
        if child.slot == COORDINATOR and self._options.burst and code == 0 and not self._is_shutting_down:
            logger.info("%s has no work left and exits.", self._name)
            self._is_shutting_down = True
        if code and child.kill_reason is None:
            job = self._slots.read(child.slot)
            in_job = f" in job {job.rq_id}" if job else ""
            end = "the worker is shutting down." if self._is_shutting_down else "it is replaced."
            logger.error("%s died%s (%s); %s", child.name, in_job, describe_exit(code), end)
        if code and time.monotonic() - child.started < SHORT_LIFE:
            self._not_before[child.slot] = time.monotonic() + (TICK if child.slot == COORDINATOR else SHORT_LIFE)
        if child.slot >= FIRST_EXECUTOR:
            self._slots.give_back(child.slot)  # otherwise the last job of --max-jobs never starts
            error = f"its process died: {describe_exit(code)}" if code else "its process ended."
            # An executor that exits without an error while it runs no job has not started a job that it may have taken.
            kind = Kind.KILLED if code or self._slots.read(child.slot) else Kind.VANISHED
            self._redis.to_reap.append((child.name, child.kill_reason or KillReason(kind, error)))

    def _enforce_limits(self) -> None:
        limit = self._options.max_memory_per_child
        for child, job in self._children.running_jobs():
            if time.monotonic() > job.started + job.timeout + OVERRUN:
                error = f"the job ran for more than its timeout of {job.timeout:.0f} s and had to be killed."
                child.kill(KillReason(Kind.TIMEOUT, error, job.rq_id))
            elif limit and (used := resident_memory(child.pid)) > limit:
                error = f"its process used {used >> 20} MB, more than --max-memory-per-child ({limit >> 20} MB)."
                child.kill(KillReason(Kind.KILLED, error, job.rq_id))
                logger.error("%s was killed in job %s: %s", child.name, job.rq_id, error)

    def _obey(self, executor: str, payload: dict[str, Any]) -> None:
        child = next((child for child in self._children.executors() if child.name == executor), None)
        if child is None:
            return
        command, job_id = payload.get("command"), str(payload.get("job_id", ""))
        logger.info("%s received the command %s %s.", executor, command, job_id)
        if command in ("stop-job", "stop-execution"):
            job = self._slots.read(child.slot)
            if job and job.rq_id == job_id and job.timeout:
                child.kill(KillReason(Kind.STOPPED, "it was stopped on request.", job_id))
            elif job and job.rq_id == job_id:
                os.kill(child.pid, rq_jobs.STOP)
        elif command == "kill-horse":
            child.kill(KillReason(Kind.KILLED, "it was killed on request."))
        elif command == "shutdown" and not self._is_shutdown_requested:
            # RQ sends this command to each executor, so a second one must not interrupt the jobs.
            self._request_shutdown("shutdown")

    def _request_shutdown(self, reason: str) -> None:
        if self._is_shutdown_requested:
            self._interrupt(f"it received {reason} again")
            return
        logger.info("%s received %s: it finishes its running jobs and exits.", self._name, reason)
        self._is_shutdown_requested = self._is_shutting_down = True
        if self._options.grace is not None:
            self._grace_ends = time.monotonic() + self._options.grace

    def _exit_after_max_jobs(self) -> None:
        if self._options.max_jobs and not self._is_shutting_down:
            started = sum(self._slots.started)
            if started >= self._options.max_jobs:
                logger.info("%s has started %d jobs and exits.", self._name, started)
                self._is_shutting_down = True

    def _interrupt(self, reason: str) -> None:
        self._interrupted_at = min(self._interrupted_at, time.monotonic())
        running = [child for child in self._children.executors() if child.kill_reason is None]
        if running:
            self._has_interrupted_jobs = True
            logger.warning("%s interrupts its running jobs: %s. They will run again.", self._name, reason)
        for child in running:
            child.kill(KillReason(Kind.INTERRUPTED, "its worker was shut down while it ran."))

    def _stop_children(self) -> None:
        """Stops the children, the coordinator last: it must apply the outcomes of all executors."""
        for slot in self._children:
            if slot != COORDINATOR:
                self._slots.should_stop[slot] = True
        if COORDINATOR in self._children and not self._children.executors() and not self._redis.to_reap:
            self._slots.should_stop[COORDINATOR] = True
            wake_coordinator()

    def _kill_unresponsive(self) -> None:
        """After an interruption, kills the remaining children: they may wait for a server that does not answer."""
        if time.monotonic() > self._interrupted_at + PATIENCE and not self._children.executors():
            self._kill_children()

    def _kill_children(self) -> None:
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)
