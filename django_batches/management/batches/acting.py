"""`retry`, `cancel`, `pause`, `resume`, `seal`: a verb of the model for each of the named batches."""

from argparse import ArgumentParser
from typing import Any

from ...exceptions import BatchError
from ...models import Batch
from ...wording import number
from .naming import add_batches, find_all, titled
from .verb import Verb, add_json


class Acting(Verb):
    """Acts on each batch; exit code 1 where for one of them nothing was done."""

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        add_batches(parser)
        add_json(parser)

    def run(self, **options: Any) -> bool:
        told = []
        for batch in find_all(options["batches"]):
            try:
                is_done, text = self.act(batch, options)
            except BatchError as error:
                is_done, text = False, str(error)
            told.append({"id": batch.pk, "done": is_done, "text": text, "status": batch.status})
            if not options["json"]:
                (self.stdout if is_done else self.stderr).write(f"{titled(batch)}: {text}")
        if options["json"]:
            self.say_json(told)
        return all(line["done"] for line in told)

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


def jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{number(count)} jobs"
