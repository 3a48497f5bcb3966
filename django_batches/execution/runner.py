"""Runs one job, from its message to its outcome.

Executors call `perform`. A plain `rq worker` calls `run_current_job`, through `execution.run`.
"""

import logging
import os
import signal
import threading
import time

# `signal.signal` converts its arguments to enums. A job would take 1.08 times as long (benchmarks.fast_paths).
from _signal import SIG_DFL, signal as set_handler  # type: ignore[import-not-found]
from contextvars import Context, copy_context
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync
from django.core.exceptions import ObjectDoesNotExist
from django.db import Error
from django.utils import timezone
from redis import Redis
from redis.exceptions import RedisError
from rq import get_current_job
from rq.job import Job
from rq.timeouts import JobTimeoutException

from .. import database
from ..calls.arguments import clean_name
from ..calls.functions import framework, resolve, task_at
from ..models.context import Running, open_block, running
from ..states import IN_FLIGHT
from ..transitions import applying
from ..transport.client import Keys, wake_coordinator
from ..transport.message import Message
from ..transport.outcomes import Kind, Outcome, own_error
from ..transport.vanished import VanishReason
from .outcome import outcome_of_exception, outcome_of_value

if TYPE_CHECKING:
    from ..tasks.runs import TaskRun

logger = logging.getLogger("django_batches.jobs")

DELAYED = 5.0
"""Seconds between taking a job and calling its function, after which its row is checked: the reconciler may have
found the job lost."""


def perform(message: Message, worker: str) -> tuple[Outcome, BaseException | None]:
    """Calls the function of a job. Returns its outcome, and the exception, which may have broken the process."""
    started, pid, context = timezone.now(), os.getpid(), copy_context()
    error: BaseException | None = None
    outcome: Outcome
    task: TaskRun | None = None
    try:
        if found := task_at(message.func):
            task = framework().TaskRun(found, message, worker, started)
        run = Running(message.job_id, message.batch_id, message.dispatch, message.is_callback)
        value = context.run(_call, message, run, task)
        outcome = _ended(outcome_of_value(message, value, run), pid, context, task)
    except _NotStarted as not_started:
        outcome = not_started.args[0]
    except BaseException as raised:
        error = raised
        # Inside the handler, because receivers of the Tasks framework's signal log the current exception.
        outcome = _ended(outcome_of_exception(message, raised), pid, context, task)
    outcome.worker, outcome.started_at, outcome.finished_at = worker, started, timezone.now()
    return outcome, error


def _ended(outcome: Outcome, pid: int, context: Context, task: "TaskRun | None") -> Outcome:
    if os.getpid() != pid:
        os._exit(0)  # a process that the job forked has returned here: it must not report for its parent
    if task:
        context.run(task.end, outcome)
    return outcome


def check_row(message: Message, worker: str) -> Outcome | None:
    """The outcome of a job that must not start, because its row no longer expects this dispatch or cannot be read.

    Checked if Redis may have been restored from an older dump, or if the job was pushed or taken long ago.
    """
    try:
        return None if _is_current(message) else _not_started(message, VanishReason.SUPERSEDED, worker=worker)
    except Error as error:
        database.connection().close()
        return _not_started(message, VanishReason.ROW_UNREADABLE, error, worker=worker)


def _is_current(message: Message) -> bool:
    # Plain SQL: a queryset takes three times as long, and a new executor checks every job of its first seconds.
    statuses = ", ".join(f"'{status.value}'" for status in IN_FLIGHT)
    statement = f"SELECT 1 FROM {database.JOB} WHERE id = %s AND dispatch = %s AND status IN ({statuses})"
    return bool(database.execute(statement, [database.parameter(message.job_id), message.dispatch]))


def _not_started(message: Message, reason: VanishReason, detail: object = "", worker: str = "") -> Outcome:
    outcome = message.vanished(reason, detail, worker=worker, was_logged=True)
    log = logger.info if reason is VanishReason.SUPERSEDED else logger.warning
    log("Job %s (%s) is not started (%s): %s", message.job_id, message.func, reason, outcome.error)
    return outcome


def unreadable(rq_id: str, error: Exception) -> Outcome | None:
    """The outcome of a job whose message cannot be read: it runs again, with a new message from its row.

    Counts as a loss, because a row that is broken itself must not run again without end. Returns None if the row cannot
    be read.
    """
    logger.error("The message of job %s cannot be read (%s); nothing was run.", rq_id, error)
    job_id, dispatch = Keys().parse(rq_id)
    row = database.jobs().filter(pk=job_id, dispatch=dispatch)
    try:
        batch_id, callback_of_id = row.values_list("batch_id", "callback_of_id").get()
    except (Error, ObjectDoesNotExist):
        return None  # the reconciler finds the job
    text = f"Its message in Redis cannot be read ({error}): its row is broken, or another version has written it."
    fields = own_error("unreadable", text)
    return Outcome(Kind.MISSING, job_id, dispatch, batch_id or callback_of_id, callback_of_id is None, **fields)


def run_current_job() -> None:
    """Runs the current RQ job as the job of a batch and reports its outcome. Never raises.

    RQ would keep the arguments of a job that raises in its FailedJobRegistry, and does not know our attempts.
    """
    if threading.current_thread() is threading.main_thread():
        # RQ's own timer started before ours and could fire while the outcome is reported.
        signal.setitimer(signal.ITIMER_REAL, 0)
    job = get_current_job()
    if job is None:
        raise RuntimeError("django_batches.execution.run is called by RQ workers only.")
    text = job.connection.hget(job.key, "batches")
    if text is None:
        logger.error("The job %s has no message of django_batches; nothing was run.", job.id)
        return
    keys = Keys(job.id.split("-")[1])
    if outcome := _run(job, text, keys):
        _report(outcome, job.connection, keys)


def _run(job: Job, text: bytes | str, keys: Keys) -> Outcome | None:
    try:
        message = Message.loads(job.id, text)
    except (ValueError, RecursionError) as error:
        return unreadable(job.id, error)
    if not message.is_callback and job.connection.sismember(keys.on_hold, message.batch_id.hex):
        return message.outcome(Kind.ON_HOLD)
    worker = clean_name(job.worker_name or "")
    return check_row(message, worker) or perform(message, worker)[0]


def _report(outcome: Outcome, redis: Redis, keys: Keys) -> None:
    """To the stream, or to the database if Redis is away; tries for half a minute."""
    for _ in range(30):
        try:
            redis.xadd(keys.outcomes, {"o": outcome.dumps()})
            return
        except (RedisError, OSError):
            if record_directly(outcome):
                return
        time.sleep(1)


def record_directly(outcome: Outcome) -> bool:
    """Applies an outcome to the database while Redis is away. Returns False if that fails too."""
    try:
        recorded = applying.record([outcome])
    except Error as error:
        logger.warning("The outcome of job %s reaches neither Redis nor the database: %s", outcome.job_id, error)
        database.connection().close()
        return False
    wake_coordinator()
    return not recorded.postponed


def _call(message: Message, run: Running, task: "TaskRun | None") -> Any:
    running.set(run)
    open_block.set(None)  # the caller's, for example around drain()
    function = resolve(message.func)
    args = [_batch_of(message), *message.args] if message.is_callback else message.args
    if task:
        args = [*task.begin(), *args]
    with alarm(message.timeout):
        call = async_to_sync(function) if iscoroutinefunction(function) else function
        value = call(*args, **message.kwargs)
    return task.normalised(value) if task else value


class _NotStarted(Exception):
    """The function was not called, so the job has used no attempt. Its argument is the outcome."""


def _batch_of(message: Message) -> Any:
    begun = time.monotonic()
    try:
        batch = database.dialect().batch(message.batch_id)
    except Error as error:
        raise _NotStarted(_not_started(message, VanishReason.BATCH_UNREADABLE, error)) from error
    if time.monotonic() > begun + DELAYED and (outcome := check_row(message, "")):
        raise _NotStarted(outcome)
    return batch


class alarm:
    """Raises `JobTimeoutException` in the block after `seconds`."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        # Python runs signal handlers in the main thread only.
        self._in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._in_main_thread:
            self._handler = set_handler(signal.SIGALRM, self._raise)
            self._left, _ = signal.setitimer(signal.ITIMER_REAL, self._seconds)
            self._began = time.monotonic()

    def __exit__(self, *error: object) -> None:
        if self._in_main_thread:
            signal.setitimer(signal.ITIMER_REAL, 0)
            set_handler(signal.SIGALRM, SIG_DFL if self._handler is None else self._handler)
            if self._left:  # of another alarm, for example of a test
                left = self._left - (time.monotonic() - self._began)
                signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))

    def _raise(self, signum: int, frame: object) -> None:
        raise JobTimeoutException(f"The job ran for more than its timeout of {self._seconds} s.")
