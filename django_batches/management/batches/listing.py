"""`list`: the newest batches, or those that are stuck."""

from argparse import ArgumentParser
from operator import itemgetter
from typing import Any

from django.core.management.base import CommandError

from ...models import Batch
from ...monitoring.backlog import unfinished
from ...monitoring.diagnosis import find_stuck
from ...monitoring.finding import Finding
from ...monitoring.formatting import number
from ...monitoring.progress import snapshots
from ...states import BatchStatus
from .base import INDENT, Verb, aligned, cut, printable, short

MAX_CHECKED = 1_000
"""How many batches `--stuck` checks, oldest first."""
_FIELDS = (
    "queue", "round", "in_flight", "open_callbacks", "is_paused", "reason", "created_at", "sealed_at", "started_at",
    "finished_at", "cancelled_at",
)  # fmt: skip
_SNAPSHOT = ("id", "status", "state", "total", "pending", "succeeded", "failed", "cancelled", "progress", "eta_seconds")


class List(Verb):
    help = "The newest batches. --stuck: the batches that are stuck and why, with exit code 1 if there are any."

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        statuses = BatchStatus.values
        parser.add_argument("--status", action="append", choices=statuses, help="only this status; may be repeated")
        parser.add_argument("--stuck", action="store_true", help="only batches that are stuck until someone intervenes")
        parser.add_argument("--limit", type=int, default=20, metavar="N", help="maximum number (default 20)")

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
            self.write(f"There are more: --limit {options['limit'] * 5}")
        return True

    def _stuck(self, options: dict[str, Any]) -> bool:
        statuses = options["status"] or BatchStatus.values
        found = dict(find_stuck(batch for batch in unfinished(MAX_CHECKED) if batch.status in statuses))
        shown = list(found)[: options["limit"]]
        self._print(shown, found, options["json"])
        if len(found) > len(shown) and not options["json"]:
            self.write(f"{number(len(found) - len(shown))} more are stuck: --limit {len(found)}")
        return not found

    def _print(self, batches: list[Batch], findings: dict[Batch, list[Finding]], as_json: bool) -> None:
        shown = snapshots(batches)
        if as_json:
            self.write_json([data(batch, shown[str(batch.pk)], findings.get(batch)) for batch in batches])
            return
        if not batches:
            self.write("There are none.")
            return
        header = ["BATCH", "STATUS", "DONE", "", "FAILED", "TIME", "DESCRIPTION"]
        columns = itemgetter("state", "done", "percent", "failed", "timing")
        rows = [[short(each), *columns(shown[str(each.pk)]["text"]), printable(each.description)] for each in batches]
        lines = aligned([header, *rows], right=(2, 3, 4))
        self.write(lines[0])
        for batch, line in zip(batches, lines[1:], strict=True):
            line, state = cut(line, self.width), shown[str(batch.pk)]["text"]["state"]
            self.write(line.replace(state, self.paint(state, batch.status), 1) if batch.has_ended else line)
            for finding in findings.get(batch, []):
                self.write(f"{' ' * len(short(batch))}{INDENT}{printable(str(finding))}")


def data(batch: Batch, snapshot: dict[str, Any], findings: list[Finding] | None = None) -> dict[str, Any]:
    numbers, fields = {name: snapshot[name] for name in _SNAPSHOT}, {name: getattr(batch, name) for name in _FIELDS}
    why = {} if findings is None else {"why": [vars(finding) for finding in findings]}
    return {**numbers, "description": batch.description, **fields, **why}
