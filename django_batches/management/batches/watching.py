"""`watch`: live bars on a terminal, plain lines elsewhere, until the batches and their callbacks have ended."""

import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from django.core.management.base import CommandError
from django.utils import timezone

from ...models import Batch
from ...monitoring.diagnosis import diagnose
from ...monitoring.formatting import number
from ...monitoring.progress import WIDTH, segments, snapshots
from ...states import BatchStatus, JobStatus
from .naming import add_batches, find_all, short, titled
from .verb import GAP, Verb, cut, printable, stamp

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError:  # the extra is not installed: plain lines
    has_rich = False
else:
    has_rich = True

BAR = 40
"""Columns of a bar."""
LIVE, LINES, REASONS = 0.25, 2.0, 5.0
"""Seconds between two looks on a terminal and elsewhere, and between two looks at what is in the way."""
_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "in_flight": "blue"}


class Watch(Verb):
    name = "watch"
    help = "Shows batches until they and their callbacks have ended; exit code 0 where all have succeeded, 1 otherwise."

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        add_batches(parser)
        parser.add_argument("--timeout", type=float, metavar="SECONDS", help="watch no longer; exit code 1")
        parser.add_argument("--plain", action="store_true", help="print lines, no live bars")

    def run(self, **options: Any) -> bool:
        self._batches = find_all(options["batches"])
        self._gone: set[Any] = set()
        self._last: dict[Any, str] = {}
        self._reasons: dict[Any, list[str]] = {}
        self._next_reasons = 0.0
        limit = None if options["timeout"] is None else time.monotonic() + options["timeout"]
        is_live = self.stdout.isatty() and has_rich and not options["plain"]
        if self.stdout.isatty() and not has_rich and not options["plain"]:
            self.stderr.write('For live bars: pip install "django-batches[cli]"')
        try:
            in_time = self._follow(is_live, limit)
        except KeyboardInterrupt:
            raise CommandError("Not watched to the end. What was watched goes on.", returncode=130) from None
        if not in_time:
            self.stderr.write(f"Not ended within {options['timeout']:g} s.")
        verdicts = [self._verdict(batch) for batch in self._batches]  # each says something
        return all(verdicts)

    def _follow(self, is_live: bool, limit: float | None) -> bool:
        """Looks until all are over; False where the time was up before."""
        self._look()  # the screen draws at once
        with self._screen() if is_live else nullcontext() as screen:
            while True:
                self._look()
                if screen is None:
                    self._print_changes()
                else:
                    screen.refresh()
                if all(map(self._is_over, self._batches)):
                    return True
                if limit is not None and time.monotonic() >= limit:
                    return False
                pause = LIVE if is_live else LINES
                time.sleep(pause if limit is None else max(0.0, min(pause, limit - time.monotonic())))

    def _look(self) -> None:
        found = Batch.objects.in_bulk([batch.pk for batch in self._batches])
        self._gone = {batch.pk for batch in self._batches if batch.pk not in found}
        self._batches = [found.get(batch.pk, batch) for batch in self._batches]
        self._told = snapshots(self._batches)
        if time.monotonic() >= self._next_reasons:
            self._next_reasons = time.monotonic() + REASONS
            self._reasons = {batch.pk: [] if self._is_over(batch) else _reasons(batch) for batch in self._batches}

    def _is_over(self, batch: Batch) -> bool:
        return batch.pk in self._gone or bool(batch.finished_at and not batch.open_callbacks)

    def _print_changes(self) -> None:
        for batch in self._batches:
            text = self._told[str(batch.pk)]["text"]
            line = GAP.join(filter(None, [titled(batch), text["state"], text["done"], text["percent"]]))
            line = GAP.join([line, *self._reasons.get(batch.pk, [])])
            if self._last.get(batch.pk) != line:
                self._last[batch.pk] = line
                self.say(f"{stamp(timezone.now())[-8:]}  {line}")

    def _screen(self) -> "AbstractContextManager[Live]":
        console = Console(file=self.stdout, force_terminal=True, highlight=False)  # type: ignore[arg-type]
        return Live(get_renderable=self._draw, console=console, auto_refresh=False)

    def _draw(self) -> "Group":
        table = Table.grid(padding=(0, 2))
        notes = []
        for batch in self._batches:
            text = self._told[str(batch.pk)]["text"]
            name = cut(printable(batch.description) or short(batch), 40)
            failed = Text(f"{text['failed']} failed" if text["failed"] else "", style="red")
            words = " ".join(filter(None, [text["timing"], text["rate"]]))
            callbacks = f"{batch.open_callbacks} callbacks to go" if batch.finished_at and batch.open_callbacks else ""
            table.add_row(
                Text(name), _bar(batch), text["percent"], text["done"], failed, text["state"], callbacks or words
            )
            notes += [Text(f"{name}: {reason}", style="yellow") for reason in self._reasons.get(batch.pk, [])]
        return Group(table, *notes)

    def _verdict(self, batch: Batch) -> bool:
        """Says how it ended; whether it and its callbacks have succeeded."""
        if batch.pk in self._gone:
            self.stderr.write(f"{titled(batch)}: it was deleted.")
            return False
        if not self._is_over(batch):
            return False
        text = self._told[str(batch.pk)]["text"]
        unlucky = batch.callbacks.filter(round=batch.round).exclude(status=JobStatus.SUCCEEDED).count()
        also = f"; {number(unlucky)} of its callbacks did not succeed" if unlucky else ""
        self.say(
            f"{titled(batch)} {self.paint(text['state'], batch.status)}: {text['summary']}, {text['timing']}{also}"
        )
        is_well = batch.status == BatchStatus.SUCCEEDED and not unlucky
        if not is_well:
            self.say(f"See: manage.py batches show {short(batch)}")
        return is_well


def _reasons(batch: Batch) -> list[str]:
    """What keeps it from moving; not what it merely waits for."""
    return [printable(str(found)) for found in diagnose(batch) if found.level != "info"]


def _bar(batch: Batch) -> "Text":
    bar = Text()
    for name, length in _lengths(batch):
        bar.append("━" * length, style=_COLOURS[name])
    bar.append("━" * (BAR - len(bar)), style="bright_black")
    return bar


def _lengths(batch: Batch) -> Iterator[tuple[str, int]]:
    """Columns of each stretch; whatever there is has one at least, as far as there is room."""
    left = BAR
    for segment in segments(batch):
        length = min(left, max(round(segment.width * BAR / WIDTH), 1 if segment.count else 0))
        left -= length
        yield segment.name, length
