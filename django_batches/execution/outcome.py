"""Turns the return value or the exception of a job's function into an outcome."""

import logging
import traceback as tracebacks
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import Error
from rq import Retry

from .. import database
from ..calls.arguments import MAX_ERROR, MAX_TRACEBACK, clean, clean_name, dump_result
from ..calls.functions import exists, resolve
from ..calls.options import seconds, type_path
from ..exceptions import BatchCancelled, BatchError, FunctionNotAllowed
from ..models.batch import Batch
from ..models.context import Running
from ..transport.message import Message
from ..transport.outcomes import Kind, Outcome, fingerprint

logger = logging.getLogger("django_batches.jobs")

_OUR_FOLDER = str(Path(__file__).parent.parent)


def outcome_of_value(message: Message, value: Any, run: Running) -> Outcome:
    if isinstance(value, Batch):
        return _returned_batch(message, value, run)
    if isinstance(value, Retry):
        try:
            most, intervals = int(value.max), value.intervals or [0]
            after = seconds(intervals[min(message.attempts, len(intervals) - 1)], "the interval of rq.Retry")
        except (TypeError, ValueError, OverflowError) as error:
            return _failure(message, error, is_final=True)
        text = f"Retry: the job returned Retry(max={value.max}) and asked to run again."
        fields = {"error_type": "rq.Retry", "error": text, "fingerprint": fingerprint("rq.Retry", message.func)}
        return message.outcome(Kind.RETRY, **fields, retry_max=most, retry_after=after)
    try:
        result = None if value is None else dump_result(value)
        return message.outcome(Kind.SUCCEEDED, result=result, has_children=bool(run.children))
    except (TypeError, ValueError, RecursionError) as error:
        # Final: the work is done, and another attempt would charge the card twice.
        return _failure(message, error, is_final=True)


def _returned_batch(message: Message, batch: Batch, run: Running) -> Outcome:
    """The result of a child batch becomes the job's. The end of any other batch would not be reported to the job."""
    if batch.pk in run.children and _is_awaited(batch.pk):
        return message.outcome(Kind.SUCCEEDED, has_children=True, returned=batch.pk)
    error = BatchError(
        f"The job returned batch {batch.pk}, which is not a child of this run. Return a batch that the job itself "
        "opened with Batch.open(...), without parent=None."
    )
    return _failure(message, error, is_final=True)


def _is_awaited(batch_id: UUID) -> bool:
    """Whether a child was not rolled back and has not been reported. True if the database cannot be queried.

    The function has done its work, so an outage must not fail the job; the coordinator checks again.
    """
    try:
        key = database.parameter(batch_id)
        return bool(database.execute(f"SELECT 1 FROM {database.BATCH} WHERE id = %s AND is_awaited", [key]))
    except Error as error:
        logger.warning("The child batch %s that a job returned cannot be checked: %s", batch_id, error)
        database.connection().close()
        return True


def outcome_of_exception(message: Message, error: BaseException) -> Outcome:
    if isinstance(error, BatchCancelled) and _is_of_own_batch(error, message):
        return message.outcome(Kind.CANCELLED)
    if isinstance(error, ImportError | FunctionNotAllowed) and not _is_importable(message.func):
        # A rolling deploy: another worker may have the code already.
        logger.warning("Job %s must wait: %s cannot be imported here (%s).", message.job_id, message.func, error)
        return message.outcome(Kind.MISSING, **describe(error, message.func))
    # By name, also of base classes: the types in the database are not imported.
    is_excluded = any(type_path(kind) in message.no_retry for kind in type(error).__mro__)
    return _failure(message, error, is_final=is_excluded or isinstance(error, FunctionNotAllowed))


def _is_of_own_batch(error: BatchCancelled, message: Message) -> bool:
    """Whether the job's own batch is cancelled, or the job raised it itself. Another batch's cancel fails the job."""
    if error.batch_id is None:
        return True
    if message.is_callback:
        return False  # the callbacks of a cancelled batch run
    if error.batch_id == message.batch_id:
        return True
    try:
        return database.batches().filter(pk=message.batch_id, cancelled_at__isnull=False).exists()
    except Error as database_error:
        logger.warning("The batch of job %s cannot be checked for a cancel: %s", message.job_id, database_error)
        database.connection().close()
        return False


def _is_importable(path: str) -> bool:
    try:
        resolve(path)
    except ImportError:
        return False
    except FunctionNotAllowed:
        return exists(path)
    return True


def _failure(message: Message, error: BaseException, *, is_final: bool) -> Outcome:
    is_final = is_final or message.attempts + 1 >= message.max_attempts
    fields = describe(error, message.func)
    attempt = f"attempt {message.attempts + 1} of {message.max_attempts}"
    args = message.job_id, message.batch_id, message.func, attempt, fields["error"]
    level = logging.ERROR if is_final else logging.WARNING
    logger.log(level, "Job %s of batch %s failed (%s, %s): %s", *args, exc_info=error)
    return message.outcome(Kind.FAILED, is_final=is_final, was_logged=is_final, **fields)


def describe(error: BaseException, place: str) -> dict[str, str]:
    """The fields of an outcome for an exception, even if its `__str__` raises.

    `place` replaces the location in the fingerprint if the traceback has none outside this package.
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error)
    except Exception as unprintable:
        text = f"<its message cannot be printed: {type(unprintable).__name__}>"
    frames = tracebacks.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if not frame.filename.startswith(_OUR_FOLDER)] or list(frames)
    if ours:
        place = f"{ours[-1].filename}:{ours[-1].name}:{ours[-1].lineno}"
    try:
        lines = "".join(tracebacks.format_exception(error))
    except Exception:
        lines = "".join(tracebacks.format_list(frames)) + f"{name}: {text}"
    short = text.partition("\n")[0] if len(text) > MAX_ERROR else text
    return {
        "error_type": clean_name(name),
        "error": clean(f"{kind.__qualname__}: {short}" if short else kind.__qualname__, MAX_ERROR),
        "traceback": clean(lines, MAX_TRACEBACK),
        "fingerprint": fingerprint(name, place),
    }
