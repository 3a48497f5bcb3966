"""`retry`, `cancel`, `pause`, `resume` and `seal` for batches; `stop` for jobs."""

from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn
from uuid import UUID

from django.db.models import Q
from redis.exceptions import RedisError
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from ...conf import settings
from ...exceptions import BatchError
from ...models import Batch, BatchJob
from ...transport.client import client
from .base import BATCH_HELP, Verb, add_batches, counted, find, find_all, printable, titled


class Action(Verb):
    """A verb that reports the result for each target; exit code 1 if it changed nothing for one of them."""

    def run(self, **options: Any) -> bool:
        results = []
        for name, result in self.results(options):
            results.append(result)
            if not options["json"]:
                (self.stdout if result["done"] else self.stderr).write(f"{name}: {result['text']}")
        if options["json"]:
            self.write_json(results)
        return all(result["done"] for result in results)

    def results(self, options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Acts on each target. Yields its name and the result for JSON, with at least `done` (bool) and `text`."""
        raise NotImplementedError


class BatchAction(Action):
    """An action on one or more batches."""

    add_arguments = staticmethod(add_batches)

    def results(self, options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for batch in find_all(options["batches"]):
            yield titled(batch), {"id": batch.pk, **_attempt(self.act, batch, options), "status": batch.status}

    def act(self, batch: Batch, options: dict[str, Any]) -> str:
        """Acts on the batch and returns what it did, as text. Raises `BatchError` if it did nothing."""
        raise NotImplementedError


class Retry(BatchAction):
    help = "Retries the failed jobs of batches. A batch that has ended is reopened, and calls its callbacks again."

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("--include-cancelled", action="store_true", help="retry the cancelled jobs too")
        BatchAction.add_arguments(parser)

    def act(self, batch: Batch, options: dict[str, Any]) -> str:
        if count := batch.retry_failed(include_cancelled=options["include_cancelled"]):
            return f"{counted(count, 'job')} will run again."
        if batch.cancelled and not options["include_cancelled"]:
            cancelled = counted(batch.cancelled, "cancelled job")
            raise BatchError(f"it has no failed jobs; use --include-cancelled to retry {cancelled}.")
        raise BatchError("it has no failed jobs.")


class Cancel(BatchAction):
    help = "Cancels batches: waiting jobs end at once, running jobs finish."

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("--reason", default="", help="stored with the batch")
        BatchAction.add_arguments(parser)

    def act(self, batch: Batch, options: dict[str, Any]) -> str:
        if batch.finished_at or batch.cancelled_at:
            raise BatchError("it has already ended." if batch.finished_at else "it is already being cancelled.")
        count = batch.cancel(options["reason"])
        if not batch.cancelled_at:
            raise BatchError("it has just ended.")
        left = f"; {counted(batch.pending, 'job')} in RQ will finish first" if batch.pending else ""
        return f"{counted(count, 'job')} cancelled{left}."


class Pause(BatchAction):
    help = "Pauses batches: no further job starts, running jobs finish."

    def act(self, batch: Batch, options: dict[str, Any]) -> str:
        return "paused." if batch.pause() else _refuse("it is already paused or has ended.")


class Resume(BatchAction):
    help = "Resumes paused batches."

    def act(self, batch: Batch, options: dict[str, Any]) -> str:
        return "resumed." if batch.resume() else _refuse("it is not paused.")


class Seal(BatchAction):
    help = "Seals open batches, for example if their creator has died: each ends with the jobs it has."

    def act(self, batch: Batch, options: dict[str, Any]) -> str:
        return "sealed." if batch.seal() else _refuse("it is already sealed or has ended.")


class Stop(Action):
    help = (
        "Stops running jobs of a batch at once, with RQ's stop-job command. They fail for good, even if attempts are "
        "left. Exit code 1 if one of them is not running."
    )

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("batch", help=BATCH_HELP)
        parser.add_argument("jobs", nargs="+", metavar="job", help="position of a job, or id of a job or callback")

    def results(self, options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        batch = find(options["batch"])
        for name in options["jobs"]:
            yield f"job {printable(name)}", {"job": name, **_attempt(_stop, batch, name)}


def _attempt(act: Callable[..., str], *args: Any) -> dict[str, Any]:
    try:
        return {"done": True, "text": act(*args)}
    except BatchError as error:
        return {"done": False, "text": str(error)}


def _refuse(reason: str) -> NoReturn:
    raise BatchError(reason)


def _stop(batch: Batch, name: str) -> str:
    job = _find_job(batch, name)
    if job is None:
        raise BatchError("the batch has no such job.")
    if not job.rq_id:
        raise BatchError(f"it is not running; its status is {job.status}.")
    try:
        send_stop_job_command(client(), job.rq_id, serializer=settings().RQ_SERIALIZER)
    except (NoSuchJobError, InvalidJobOperation):
        raise BatchError("no worker has started it, or it has just ended.") from None
    except (RedisError, OSError) as error:
        raise BatchError(f"Redis does not answer ({error}).") from error
    return "the stop command was sent to its worker."


def _find_job(batch: Batch, name: str) -> BatchJob | None:
    if name.isdecimal() and len(name) < 10:
        return batch.jobs.filter(position=int(name)).first()
    with suppress(ValueError):
        return BatchJob.objects.filter(Q(batch=batch) | Q(callback_of=batch), pk=UUID(name)).first()
    return None
