"""`list`: the newest batches, or those that do not move."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from ...models import Batch
from ...monitoring.backlog import unfinished
from ...monitoring.diagnosis import find_stuck
from ...monitoring.finding import Finding
from ...monitoring.formatting import number
from ...monitoring.progress import snapshots
from ...states import BatchStatus
from .naming import short
from .verb import GAP, Verb, add_json, aligned, cut, printable

CHECKED = 1_000
"""Batches that `--stuck` looks at, the oldest first."""
FIELDS = (
    "queue", "round", "in_flight", "open_callbacks", "is_paused", "reason", "created_at", "sealed_at", "started_at",
    "finished_at", "cancelled_at",
)  # fmt: skip
TOLD = ("id", "status", "state", "total", "pending", "succeeded", "failed", "cancelled", "progress", "eta_seconds")


class List(Verb):
    name = "list"
    help = "The newest batches; --stuck: those that do not move and why, and exit code 1 where there are any."

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        statuses = BatchStatus.values
        parser.add_argument(
            "--status", action="append", choices=statuses, help="only with this status; may be repeated"
        )
        parser.add_argument("--stuck", action="store_true", help="only batches that will not move until somebody helps")
        parser.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many (default 20)")
        add_json(parser)

    def run(self, **options: Any) -> bool:
        if options["limit"] < 1:
            raise CommandError("--limit must be 1 or more.")
        if options["stuck"]:
            return self._stuck(options)
        found = Batch.objects.order_by("-pk")
        if options["status"]:
            found = found.filter(status__in=options["status"])
        batches = list(found[: options["limit"] + 1])
        self._print(batches[: options["limit"]], {}, options["json"])
        if len(batches) > options["limit"] and not options["json"]:
            self.say(f"There are more: --limit {options['limit'] * 5}")
        return True

    def _stuck(self, options: dict[str, Any]) -> bool:
        asked = [batch for batch in unfinished(CHECKED) if batch.status in (options["status"] or BatchStatus.values)]
        found = dict(find_stuck(asked))
        shown = list(found)[: options["limit"]]
        self._print(shown, found, options["json"])
        if len(found) > len(shown) and not options["json"]:
            self.say(f"{number(len(found) - len(shown))} more do not move either: --limit {len(found)}")
        return not found

    def _print(self, batches: list[Batch], findings: dict[Batch, list[Finding]], as_json: bool) -> None:
        told = snapshots(batches)
        if as_json:
            self.say_json([data(batch, told[str(batch.pk)], findings.get(batch)) for batch in batches])
            return
        if not batches:
            self.say("There are none.")
            return
        header = ["BATCH", "STATUS", "DONE", "", "FAILED", "TIME", "DESCRIPTION"]
        lines = aligned([header, *(_row(batch, told[str(batch.pk)]["text"]) for batch in batches)], right=(2, 3, 4))
        self.say(lines[0])
        for batch, line in zip(batches, lines[1:], strict=True):
            self.say(self._coloured(cut(line, self.width), batch, told[str(batch.pk)]["text"]["state"]))
            for finding in findings.get(batch, []):
                self.say(f"{' ' * len(short(batch))}{GAP}{printable(str(finding))}")

    def _coloured(self, line: str, batch: Batch, state: str) -> str:
        return line.replace(state, self.paint(state, batch.status), 1) if batch.has_ended else line


def data(batch: Batch, told: dict[str, Any], findings: list[Finding] | None = None) -> dict[str, Any]:
    """A batch for programs."""
    found = {**{name: told[name] for name in TOLD}, "description": batch.description}
    found |= {name: getattr(batch, name) for name in FIELDS}
    if findings is not None:
        found["why"] = [vars(finding) for finding in findings]
    return found


def _row(batch: Batch, text: dict[str, str]) -> list[str]:
    return [
        short(batch), text["state"], text["done"], text["percent"], text["failed"], text["timing"],
        printable(batch.description),
    ]  # fmt: skip
