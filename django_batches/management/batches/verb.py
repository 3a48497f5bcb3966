"""What the verbs have in common: a name, arguments, output."""

import json
import shutil
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, ClassVar

from django.core.management.base import OutputWrapper
from django.core.management.color import Style
from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

GAP = "  "
_COLOURS = {"succeeded": "SUCCESS", "failed": "ERROR", "error": "ERROR", "cancelled": "WARNING", "warning": "WARNING"}


class Verb:
    """One verb of the command. `run` returns whether the exit code is 0, and 1 otherwise."""

    name: ClassVar[str]
    help: ClassVar[str]

    def __init__(self, stdout: OutputWrapper, stderr: OutputWrapper, style: Style) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.style = style

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Adds the verb's own arguments."""

    def run(self, **options: Any) -> bool:
        raise NotImplementedError

    def say(self, text: str = "") -> None:
        self.stdout.write(text)

    def say_json(self, data: object) -> None:
        self.stdout.write(json.dumps(data, cls=DjangoJSONEncoder, indent=2, ensure_ascii=False))

    def paint(self, text: str, word: str) -> str:
        """The text in the colour of a status or a level, on a terminal that has colours."""
        colour = _COLOURS.get(word)
        return getattr(self.style, colour)(text) if colour else text

    @property
    def width(self) -> int:
        """Columns of the terminal; without one lines are never cut."""
        return shutil.get_terminal_size().columns if self.stdout.isatty() else 10_000


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def aligned(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """The rows as lines of aligned columns, without the empty ones; `right` are the columns of numbers."""
    right = set(right)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ).rstrip()
        for row in rows
    ]


def printable(text: str) -> str:
    """On one line, and without what a terminal would obey."""
    return "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(1, width - 1)]}…"


def stamp(moment: datetime | None) -> str:
    """Date and time to the second, in the active time zone."""
    if moment is None:
        return ""
    return f"{timezone.localtime(moment) if timezone.is_aware(moment) else moment:%Y-%m-%d %H:%M:%S}"
