"""`watch`: shows live bars on a terminal, or else plain lines, until the batches and their callbacks have ended."""

import time
from argparse import ArgumentParser
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError
from django.utils import timezone

from ...models import Batch
from ...monitoring.diagnosis import diagnose
from ...monitoring.progress import WIDTH, segments, snapshots
from ...states import BatchStatus, JobStatus
from .base import INDENT, Verb, add_batches, counted, cut, find_all, printable, short, stamp, titled

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError:  # the extra is not installed: `watch` prints plain lines
    has_rich = False
else:
    has_rich = True

BAR_COLUMNS = 40
LIVE_INTERVAL, LINE_INTERVAL, DIAGNOSIS_INTERVAL = 0.25, 2.0, 5.0
"""Seconds between two refreshes of the bars, of the lines, and of the diagnosis."""
_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "in_flight": "blue"}


class Watch(Verb):
    has_json = False
    help = "Shows batches until they and their callbacks have ended. Exit code 0 if all succeeded, otherwise 1."

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        add_batches(parser)
        parser.add_argument("--timeout", type=float, metavar="SECONDS", help="stop watching after this, exit code 1")
        parser.add_argument("--plain", action="store_true", help="print lines instead of live bars")

    def run(self, **options: Any) -> bool:
        self._batches = find_all(options["batches"])
        self._deleted: set[Any] = set()
        self._printed: dict[Any, str] = {}
        self._problems: dict[Any, list[str]] = {}
        self._next_diagnosis = 0.0
        limit = None if options["timeout"] is None else time.monotonic() + options["timeout"]
        wants_bars = self.stdout.isatty() and not options["plain"]
        if wants_bars and not has_rich:
            self.stderr.write('For live bars: pip install "django-batches[cli]"')
        try:
            in_time = self._follow(wants_bars and has_rich, limit)
        except KeyboardInterrupt:
            raise CommandError("Stopped watching. The batches continue.", returncode=130) from None
        if not in_time:
            self.stderr.write(f"The batches have not all ended within {options['timeout']:g} s.")
        results = [self._result(batch) for batch in self._batches]  # a list, because each call prints a line
        return all(results)

    def _follow(self, is_live: bool, limit: float | None) -> bool:
        """Shows the batches until all have ended. Returns False if the time limit is reached first."""
        self._refresh()  # the screen needs data, because it draws as soon as it opens
        with self._screen() if is_live else nullcontext() as screen:
            while True:
                self._refresh()
                if screen is None:
                    self._print_changes()
                else:
                    screen.refresh()
                if all(map(self._is_over, self._batches)):
                    return True
                if limit is not None and time.monotonic() >= limit:
                    return False
                pause = LIVE_INTERVAL if is_live else LINE_INTERVAL
                time.sleep(pause if limit is None else max(0.0, min(pause, limit - time.monotonic())))

    def _refresh(self) -> None:
        found = Batch.objects.in_bulk([batch.pk for batch in self._batches])
        self._deleted = {batch.pk for batch in self._batches if batch.pk not in found}
        self._batches = [found.get(batch.pk, batch) for batch in self._batches]
        self._texts = {UUID(key): shown["text"] for key, shown in snapshots(self._batches).items()}
        if time.monotonic() >= self._next_diagnosis:
            self._next_diagnosis = time.monotonic() + DIAGNOSIS_INTERVAL
            self._problems = {batch.pk: _problems(batch) for batch in self._batches if not self._is_over(batch)}

    def _is_over(self, batch: Batch) -> bool:
        return batch.pk in self._deleted or bool(batch.finished_at and not batch.open_callbacks)

    def _print_changes(self) -> None:
        for batch in self._batches:
            text = self._texts[batch.pk]
            words = [titled(batch), text["state"], text["done"], text["percent"], *self._problems.get(batch.pk, [])]
            line = INDENT.join(filter(None, words))
            if self._printed.get(batch.pk) != line:
                self._printed[batch.pk] = line
                self.write(f"{stamp(timezone.now())[-8:]}{INDENT}{line}")

    def _screen(self) -> "AbstractContextManager[Live]":
        console = Console(file=self.stdout, force_terminal=True, highlight=False)  # type: ignore[arg-type]
        return Live(get_renderable=self._draw, console=console, auto_refresh=False)

    def _draw(self) -> "Group":
        table = Table.grid(padding=(0, 2))
        notes = []
        for batch in self._batches:
            text = self._texts[batch.pk]
            name = cut(printable(batch.description) or short(batch), 40)
            failed = Text(f"{text['failed']} failed" if text["failed"] else "", style="red")
            note = " ".join(filter(None, [text["timing"], text["rate"]]))
            if batch.finished_at and batch.open_callbacks:
                note = f"{counted(batch.open_callbacks, 'callback')} left"
            table.add_row(Text(name), _bar(batch), text["percent"], text["done"], failed, text["state"], note)
            notes += [Text(f"{name}: {problem}", style="yellow") for problem in self._problems.get(batch.pk, [])]
        return Group(table, *notes)

    def _result(self, batch: Batch) -> bool:
        """Prints how the batch ended, and returns whether it and its callbacks succeeded."""
        if batch.pk in self._deleted:
            self.stderr.write(f"{titled(batch)}: it was deleted.")
            return False
        if not self._is_over(batch):
            return False
        text = self._texts[batch.pk]
        failed = batch.callbacks.filter(round=batch.round).exclude(status=JobStatus.SUCCEEDED).count()
        also = f"; {counted(failed, 'callback')} did not succeed" if failed else ""
        state = self.paint(text["state"], batch.status)
        self.write(f"{titled(batch)} {state}: {text['summary']}, {text['timing']}{also}")
        is_ok = batch.status == BatchStatus.SUCCEEDED and not failed
        if not is_ok:
            self.write(f"See: manage.py batches show {short(batch)}")
        return is_ok


def _problems(batch: Batch) -> list[str]:
    """Returns what blocks the batch, without what it merely waits for."""
    return [printable(str(finding)) for finding in diagnose(batch) if finding.level != "info"]


def _bar(batch: Batch) -> "Text":
    """Draws the bar. A segment that counts any job gets at least one column, as long as there is room."""
    bar, left = Text(), BAR_COLUMNS
    for segment in segments(batch):
        length = min(left, max(round(segment.width * BAR_COLUMNS / WIDTH), 1 if segment.count else 0))
        bar.append("━" * length, style=_COLOURS[segment.name])
        left -= length
    bar.append("━" * left, style="bright_black")
    return bar
