"""Running one job: from the message that came with it to its outcome. Never raises towards RQ.

`perform` serves the executors; `run` is what RQ calls under a plain `rq worker`.
"""

import logging
import os
import signal
import threading
import time

# Not signal.signal, which makes enums of what it is given: a quarter of what a run costs here.
from _signal import SIG_DFL  # type: ignore[import-not-found]
from _signal import signal as set_handler
from contextvars import Context, copy_context
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync
from django.db import Error
from django.utils import timezone
from redis import Redis
from redis.exceptions import RedisError
from rq import get_current_job
from rq.timeouts import JobTimeoutException

from .. import database
from ..calls.arguments import clean_name
from ..calls.functions import framework, resolve, task_at
from ..models.context import Running, open_block, running
from ..states import IN_FLIGHT
from ..transitions import applying
from ..transport.client import Keys, wake_coordinator
from ..transport.message import Message
from ..transport.outcomes import Kind, Outcome, fingerprint
from .outcome import outcome_of_exception, outcome_of_value

if TYPE_CHECKING:
    from ..tasks import TaskRun

logger = logging.getLogger("django_batches.jobs")

HELD_UP = 5.0
"""Seconds on the way to a function after which the row is asked again: others may have taken the job for lost."""


def perform(message: Message, worker: str) -> tuple[Outcome, BaseException | None]:
    """Runs the function of a job; its outcome, and the exception, if any, for the caller to judge the process by."""
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
    except _NotStarted as refused:
        logger.warning("Callback %s is not started: %s", message.job_id, refused)
        outcome = message.outcome(Kind.VANISHED)
    except BaseException as raised:
        error = raised
        # In here, because receivers of the Tasks framework's signal log the exception that is being handled.
        outcome = _ended(outcome_of_exception(message, raised), pid, context, task)
    outcome.worker, outcome.started_at, outcome.finished_at = worker, started, timezone.now()
    return outcome, error


def _ended(outcome: Outcome, pid: int, context: Context, task: "TaskRun | None") -> Outcome:
    if os.getpid() != pid:
        os._exit(0)  # a fork made by the job has come back here: it must not speak for its parent
    if task:
        context.run(task.end, outcome)
    return outcome


def is_current(message: Message) -> bool:
    """Whether the row still waits for this dispatch: asked where Redis may have been rolled back or the push is old."""
    # Plain SQL: a queryset takes three times as long, and for the first seconds of an executor every job is asked.
    statuses = ", ".join(f"'{status.value}'" for status in IN_FLIGHT)
    found = database.execute(
        f"SELECT 1 FROM {database.JOB} WHERE id = %s AND dispatch = %s AND status IN ({statuses})",
        [database.parameter(message.job_id), message.dispatch],
    )
    return bool(found)


def unreadable(rq_id: str, error: Exception) -> Outcome | None:
    """The outcome of a job whose message is none: given back, because the next one is written anew from the row.

    A loss, because a row that is broken itself must not go round for ever. None where the row cannot be asked.
    """
    logger.error("The job %s carries a message that cannot be read (%s); nothing was run.", rq_id, error)
    job_id, dispatch = Keys().parse(rq_id)
    try:
        found = database.jobs().filter(pk=job_id, dispatch=dispatch).values_list("batch_id", "callback_of_id").first()
    except Error:
        return None  # the reconciler finds it
    if found is None:
        return None
    told = f"Its message in Redis cannot be read ({error}): its row is broken, or another version has written it."
    batch_id, callback_of_id = found
    return Outcome(
        Kind.MISSING,
        job_id,
        dispatch,
        batch_id or callback_of_id,
        callback_of_id is None,
        error_type="django_batches.unreadable",
        error=told,
        fingerprint=fingerprint("django_batches.unreadable", ""),
    )


def run_current_job() -> None:
    """What RQ calls: runs the current RQ job as the job of a batch and tells its outcome. Never raises.

    A raised exception would keep the arguments in RQ's FailedJobRegistry, and RQ knows nothing of our attempts.
    """
    if threading.current_thread() is threading.main_thread():
        # RQ's own timer began before ours and would ring in the middle of what is told of this run.
        signal.setitimer(signal.ITIMER_REAL, 0)
    job = get_current_job()
    if job is None:
        raise RuntimeError("django_batches.execution.run is called by RQ workers only.")
    text = job.connection.hget(job.key, "batches")
    if text is None:
        logger.error("The job %s carries no message of django_batches; nothing was run.", job.id)
        return
    keys = Keys(job.id.split("-")[1])
    try:
        message = Message.loads(job.id, text)
    except (ValueError, RecursionError) as error:
        if outcome := unreadable(job.id, error):
            _tell(outcome, job.connection, keys)
        return
    if not message.is_callback and job.connection.sismember(keys.on_hold, message.batch_id.hex):
        outcome = message.outcome(Kind.ON_HOLD)
    else:
        outcome = _ask_and_perform(message, clean_name(job.worker_name or ""))
    _tell(outcome, job.connection, keys)


def _ask_and_perform(message: Message, worker: str) -> Outcome:
    try:
        if not is_current(message):
            return message.outcome(Kind.VANISHED)  # which changes nothing for a row that has gone on
    except Error as error:
        logger.warning("The row of job %s cannot be asked, so it is not started: %s", message.job_id, error)
        return message.outcome(Kind.VANISHED)
    return perform(message, worker)[0]


def _tell(outcome: Outcome, redis: Redis, keys: Keys) -> None:
    """To the stream, or to the database where Redis is away; tries for half a minute."""
    for _ in range(30):
        try:
            redis.xadd(keys.outcomes, {"o": outcome.dumps()})
            return
        except (RedisError, OSError):
            if record_directly(outcome):
                return
        time.sleep(1)


def record_directly(outcome: Outcome) -> bool:
    """Writes an outcome to the database because Redis is away; False where that is away too."""
    try:
        recorded = applying.record([outcome])
    except Error as error:
        logger.warning("The outcome of job %s cannot be told to Redis or the database: %s", outcome.job_id, error)
        database.connection().close()
        return False
    wake_coordinator()
    return not recorded.postponed


def _call(message: Message, run: Running, task: "TaskRun | None") -> Any:
    running.set(run)
    open_block.set(None)  # of whoever runs the job here, as drain() does: it is no block of the job
    function = resolve(message.func)
    args = message.args
    if message.is_callback:
        args = [_batch_of(message), *args]
    if task:
        args = [*task.begin(), *args]
    with alarm(message.timeout):
        if iscoroutinefunction(function):
            value = async_to_sync(function)(*args, **message.kwargs)
        else:
            value = function(*args, **message.kwargs)
    return task.normalised(value) if task else value


class _NotStarted(Exception):
    """The database was away or slow before the function was called: no attempt of its own."""


def _batch_of(message: Message) -> Any:
    asked_at = time.monotonic()
    try:
        batch = database.batch(message.batch_id)
        if time.monotonic() > asked_at + HELD_UP and not is_current(message):
            raise _NotStarted("its batch was read so slowly that it has been given to another worker meanwhile.")
    except Error as error:
        raise _NotStarted(f"its batch cannot be read: {error}") from error
    return batch


class alarm:
    """Raises `JobTimeoutException` in the block after `seconds`."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        # Python runs signal handlers in the main thread only.
        self._can_ring = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._can_ring:
            self._handler = set_handler(signal.SIGALRM, self._ring)
            self._left, _ = signal.setitimer(signal.ITIMER_REAL, self._seconds)
            self._began = time.monotonic()

    def __exit__(self, *error: object) -> None:
        if self._can_ring:
            signal.setitimer(signal.ITIMER_REAL, 0)
            set_handler(signal.SIGALRM, SIG_DFL if self._handler is None else self._handler)
            if self._left:  # somebody else's, of a test
                left = self._left - (time.monotonic() - self._began)
                signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))

    def _ring(self, signum: int, frame: object) -> None:
        raise JobTimeoutException(f"The job ran for more than its timeout of {self._seconds} s.")
