"""Running one job: from the message that came with it to its outcome. Never raises towards RQ.

`perform` serves the executors; `run` is what RQ calls under a plain `rq worker`.
"""

import json
import logging
import os
import signal
import threading
import time

# Not signal.signal, which makes enums of what it is given: a quarter of what a run costs here.
from _signal import SIG_DFL  # type: ignore[import-not-found]
from _signal import signal as set_handler
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import django
from asgiref.sync import async_to_sync
from django.apps import apps
from django.db import Error
from django.utils import timezone
from redis import Redis
from redis.exceptions import RedisError
from rq import Retry, get_current_job
from rq.timeouts import JobTimeoutException

from .conf import LARGEST_PAYLOAD
from .connection import Keys, poke
from .context import Running, opened, running
from .describing import described
from .exceptions import BatchCancelled, BatchError, FunctionNotAllowed
from .functions import framework, resolve, task_at
from .options import type_path
from .outcomes import Kind, Outcome, fingerprint
from .payloads import clean_name, dump_result
from .states import IN_FLIGHT
from .transitions import recording, rows
from .verbs import BatchVerbs

if TYPE_CHECKING:
    from .models import Batch
    from .tasks import TaskRun

logger = logging.getLogger("django_batches.jobs")

MAX_HEAD = 65_536
"""Bytes of a message that are not arguments."""
HELD_UP = 5.0
"""Seconds on the way to a function after which the row is asked again: others may have taken the job for lost."""


@dataclass(slots=True)
class Message:
    """What travels with a job: the call, and where its outcome belongs."""

    batch_id: UUID
    job_id: UUID
    is_callback: bool
    event: str
    func: str
    timeout: int
    attempts: int
    max_attempts: int
    no_retry: list[str]
    args: list[Any] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    dispatch: int

    @classmethod
    def of(cls, rq_id: str, text: str | bytes) -> "Message":
        """Raises `ValueError` for text that is no message of ours."""
        if len(text) > LARGEST_PAYLOAD + MAX_HEAD:
            raise ValueError(f"{len(text):,} bytes are more than any MAX_PAYLOAD allows")
        values = json.loads(text)
        if not isinstance(values, list) or [type(value) for value in values] != _TYPES:
            raise ValueError("it is not the list that the coordinator writes")
        batch, job, callback, event, func, timeout, attempts, max_attempts, no_retry, (args, kwargs) = values
        if not (type(args) is list and type(kwargs) is dict and 1 <= timeout < 2**31):
            raise ValueError("its arguments or its timeout are none")
        dispatch = int(rq_id.rpartition("-")[2])
        return cls(
            UUID(batch), UUID(job), bool(callback), event, func, timeout, attempts, max_attempts, no_retry,
            args, kwargs, dispatch,
        )  # fmt: skip

    def outcome(self, kind: Kind, **fields: Any) -> Outcome:
        return Outcome(kind, self.job_id, self.dispatch, self.batch_id, not self.is_callback, **fields)


_TYPES = [str, str, int, str, str, int, int, int, list, list]


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
        outcome = _ended(_returned(message, value, run), pid, context, task)
    except _NotStarted as refused:
        logger.warning("Callback %s is not started: %s", message.job_id, refused)
        outcome = message.outcome(Kind.VANISHED)
    except BaseException as raised:
        error = raised
        # In here, because receivers of the Tasks framework's signal log the exception that is being handled.
        outcome = _ended(_raised(message, raised), pid, context, task)
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
    found = rows.execute(
        f"SELECT 1 FROM {rows.JOB} WHERE id = %s AND dispatch = %s AND status IN ({statuses})",
        [rows.parameter(message.job_id), message.dispatch],
    )
    return bool(found)


def unreadable(rq_id: str, error: Exception) -> Outcome | None:
    """The outcome of a job whose message is none: given back, because the next one is written anew from the row.

    A loss, because a row that is broken itself must not go round for ever. None where the row cannot be asked.
    """
    logger.error("The job %s carries a message that cannot be read (%s); nothing was run.", rq_id, error)
    job_id, dispatch = Keys().parse(rq_id)
    try:
        found = rows.jobs().filter(pk=job_id, dispatch=dispatch).values_list("batch_id", "callback_of_id").first()
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


def run() -> None:
    """What RQ calls: runs the current RQ job as the job of a batch and tells its outcome. Never raises.

    A raised exception would keep the arguments in RQ's FailedJobRegistry, and RQ knows nothing of our attempts.
    """
    if not apps.ready:
        django.setup()
    job = get_current_job()
    if job is None:
        raise RuntimeError("django_batches.execution.run is called by RQ workers only.")
    text = job.connection.hget(job.key, "batches")
    if text is None:
        logger.error("The job %s carries no message of django_batches; nothing was run.", job.id)
        return
    keys = Keys(job.id.split("-")[1])
    try:
        message = Message.of(job.id, text)
    except (ValueError, RecursionError) as error:
        if outcome := unreadable(job.id, error):
            _tell(outcome, job.connection, keys)
        return
    if not message.is_callback and job.connection.sismember(keys.held, message.batch_id.hex):
        outcome = message.outcome(Kind.HELD)
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
        recorded = recording.record([outcome])
    except Error as error:
        logger.warning("The outcome of job %s cannot be told to Redis or the database: %s", outcome.job_id, error)
        rows.connection().close()
        return False
    poke()
    return not recorded.postponed


def _call(message: Message, run: Running, task: "TaskRun | None") -> Any:
    running.set(run)
    opened.set(None)  # of whoever runs the job here, as drain() does: it is no block of the job
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
        batch = rows.batches().get(pk=message.batch_id)
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
            set_handler(signal.SIGALRM, self._ring)
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *error: object) -> None:
        if self._can_ring:
            signal.setitimer(signal.ITIMER_REAL, 0)
            set_handler(signal.SIGALRM, SIG_DFL)

    def _ring(self, signum: int, frame: object) -> None:
        raise JobTimeoutException(f"The job ran for more than its timeout of {self._seconds} s.")


def _returned(message: Message, value: Any, run: Running) -> Outcome:
    if isinstance(value, BatchVerbs):
        return _returned_batch(message, value, run)
    if isinstance(value, Retry):
        intervals = value.intervals or [0]
        after = float(intervals[min(message.attempts, len(intervals) - 1)])
        return message.outcome(
            Kind.RETRY,
            error_type="rq.Retry",
            error=f"Retry: the job returned Retry(max={value.max}) and asked to run again.",
            fingerprint=fingerprint("rq.Retry", message.func),
            retry_max=value.max,
            retry_after=after,
        )
    try:
        result = None if value is None else dump_result(value)
        return message.outcome(Kind.SUCCEEDED, result=result, has_children=bool(run.children))
    except (TypeError, ValueError, RecursionError) as error:
        # For good: the work is done, and doing it again would charge the card twice.
        return _failure(message, error, is_final=True)


def _returned_batch(message: Message, value: BatchVerbs, run: Running) -> Outcome:
    """The job takes the result of a child; of any other batch nobody would tell it the end."""
    key = cast("Batch", value).pk
    if key in run.children and _is_awaited(key):
        return message.outcome(Kind.SUCCEEDED, has_children=True, returned=key)
    error = BatchError(
        f"The job returned batch {key}, which is no child of this run: return a batch that the job itself has opened "
        "by Batch.open(...), without parent=None."
    )
    return _failure(message, error, is_final=True)


def _is_awaited(batch_id: UUID) -> bool:
    """Whether a child was neither rolled back nor told already; True where the database cannot be asked.

    The function has done its work, so this must not fail it; the books look again when they get the outcome.
    """
    try:
        return rows.batches().filter(pk=batch_id, is_awaited=True).exists()
    except Error as error:
        logger.warning("The child batch %s that a job has returned cannot be asked: %s", batch_id, error)
        rows.connection().close()
        return True


def _raised(message: Message, error: BaseException) -> Outcome:
    if isinstance(error, BatchCancelled):
        return message.outcome(Kind.CANCELLED)
    if isinstance(error, ImportError) and not _is_importable(message.func):
        # A rolling deploy: another worker has the code already.
        logger.warning("Job %s was given back: %s cannot be imported here (%s).", message.job_id, message.func, error)
        return message.outcome(Kind.MISSING, **described(error, message.func))
    return _failure(message, error, is_final=isinstance(error, FunctionNotAllowed) or _is_excluded(error, message))


def _is_excluded(error: BaseException, message: Message) -> bool:
    """By name, also of a base class: a type that came back from the database is not imported."""
    return any(type_path(kind) in message.no_retry for kind in type(error).__mro__)


def _is_importable(path: str) -> bool:
    try:
        resolve(path)
    except ImportError:
        return False
    except FunctionNotAllowed:
        return True
    return True


def _failure(message: Message, error: BaseException, *, is_final: bool) -> Outcome:
    is_final = is_final or message.attempts + 1 >= message.max_attempts
    told = described(error, message.func)
    log = logger.error if is_final else logger.warning
    attempt = f"attempt {message.attempts + 1} of {message.max_attempts}"
    log(
        "Job %s of batch %s failed (%s, %s): %s",
        message.job_id, message.batch_id, message.func, attempt, told["error"],
        exc_info=error,
    )  # fmt: skip
    return message.outcome(Kind.FAILED, is_final=is_final, was_logged=is_final, **told)
