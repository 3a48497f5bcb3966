"""`retry`, `cancel`, `pause`, `resume`, `seal`: a verb of the model for each of the named batches; `stop` for jobs."""

from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

from django.db.models import Q
from redis.exceptions import RedisError
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from ...conf import settings
from ...exceptions import BatchError
from ...models import Batch, BatchJob
from ...monitoring.formatting import number
from ...transport.client import client
from .naming import add_batches, find, find_all, titled
from .verb import Verb, add_json, printable


class Telling(Verb):
    """Says of each thing in turn whether anything was done, and what."""

    def tell(self, done: Iterable[tuple[str, dict[str, Any]]], *, as_json: bool) -> bool:
        """Says what was done, as it is done: the name of each thing, and its `done` and `text`; whether all were."""
        told = []
        for name, line in done:
            told.append(line)
            if not as_json:
                (self.stdout if line["done"] else self.stderr).write(f"{name}: {line['text']}")
        if as_json:
            self.say_json(told)
        return all(line["done"] for line in told)


class Acting(Telling):
    """Acts on each batch; exit code 1 where for one of them nothing was done."""

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        add_batches(parser)
        add_json(parser)

    def run(self, **options: Any) -> bool:
        return self.tell(self._done(options), as_json=options["json"])

    def _done(self, options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for batch in find_all(options["batches"]):
            try:
                is_done, text = self.act(batch, options)
            except BatchError as error:
                is_done, text = False, str(error)
            yield titled(batch), {"id": batch.pk, "done": is_done, "text": text, "status": batch.status}

    def act(self, batch: Batch, options: dict[str, Any]) -> tuple[bool, str]:
        """Whether anything was done, and what, in words."""
        raise NotImplementedError


class Retry(Acting):
    name = "retry"
    help = "Runs the failed jobs of batches again; one that had ended is re-opened and tells its callbacks again."

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("--include-cancelled", action="store_true", help="run the cancelled jobs again too")
        Acting.add_arguments(parser)

    def act(self, batch: Batch, options: dict[str, Any]) -> tuple[bool, str]:
        count = batch.retry_failed(include_cancelled=options["include_cancelled"])
        if count:
            return True, f"{jobs(count)} will run again."
        if batch.cancelled and not options["include_cancelled"]:
            return False, f"nothing of it has failed; {jobs(batch.cancelled)} were cancelled: --include-cancelled"
        return False, "nothing of it has failed, so nothing was done."


class Cancel(Acting):
    name = "cancel"
    help = "Cancels batches: what waits ends at once, what runs finishes."

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("--reason", default="", help="kept with the batch")
        Acting.add_arguments(parser)

    def act(self, batch: Batch, options: dict[str, Any]) -> tuple[bool, str]:
        if batch.finished_at or batch.cancelled_at:
            is_ended = "has ended" if batch.finished_at else "is being cancelled"
            return False, f"it {is_ended} already, so nothing was done."
        count = batch.cancel(options["reason"])
        if not batch.cancelled_at:
            return False, "it has ended meanwhile, so nothing was done."
        left = f"; {jobs(batch.pending)} in RQ will finish first" if batch.pending else ""
        return True, f"{jobs(count)} cancelled{left}."


class Pause(Acting):
    name = "pause"
    help = "Pauses batches: no further job starts, running ones finish."

    def act(self, batch: Batch, options: dict[str, Any]) -> tuple[bool, str]:
        if batch.pause():
            return True, "paused."
        return False, "it is paused or has ended already, so nothing was done."


class Resume(Acting):
    name = "resume"
    help = "Lets paused batches go on."

    def act(self, batch: Batch, options: dict[str, Any]) -> tuple[bool, str]:
        if batch.resume():
            return True, "it goes on."
        return False, "it is not paused, so nothing was done."


class Seal(Acting):
    name = "seal"
    help = "Seals open batches whose creator has died: each ends with what it has."

    def act(self, batch: Batch, options: dict[str, Any]) -> tuple[bool, str]:
        if batch.seal():
            return True, "sealed."
        return False, "it is sealed or has ended already, so nothing was done."


class Stop(Telling):
    name = "stop"
    help = (
        "Stops running jobs of a batch at once, by RQ's stop-job: they fail for good, whatever their attempts. "
        "Exit code 1 where one of them does not run."
    )

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("batch", help="id of a batch, or the end or beginning of one")
        parser.add_argument("jobs", nargs="+", metavar="job", help="position of a job, or id of a job or callback")
        add_json(parser)

    def run(self, **options: Any) -> bool:
        return self.tell(self._done(find(options["batch"]), options["jobs"]), as_json=options["json"])

    def _done(self, batch: Batch, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in names:
            is_done, text = _stop(batch, name)
            yield f"job {printable(name)}", {"job": name, "done": is_done, "text": text}


def _stop(batch: Batch, name: str) -> tuple[bool, str]:
    """Whether a worker was asked to stop a job, and what happened, in words."""
    job = _job_of(batch, name)
    if job is None:
        return False, "the batch has no such job."
    if not job.rq_id:
        return False, f"it is {job.status}, so there is nothing to stop."
    try:
        send_stop_job_command(client(), job.rq_id, serializer=settings().RQ_SERIALIZER)
    except (NoSuchJobError, InvalidJobOperation):
        return False, "no worker has begun with it, or it has just ended, so there was nothing to stop."
    except (RedisError, OSError) as error:
        return False, f"Redis does not answer ({error})."
    return True, "its worker has been asked to stop it."


def _job_of(batch: Batch, name: str) -> BatchJob | None:
    if name.isdecimal() and len(name) < 10:
        return batch.jobs.filter(position=int(name)).first()
    try:
        key = UUID(name)
    except ValueError:
        return None
    return BatchJob.objects.filter(Q(batch=batch) | Q(callback_of=batch), pk=key).first()


def jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{number(count)} jobs"
