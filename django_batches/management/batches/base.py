"""What the verbs share: name, arguments, output."""

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

from ...monitoring.formatting import number

INDENT = "  "
_COLOURS = {"succeeded": "SUCCESS", "failed": "ERROR", "error": "ERROR", "cancelled": "WARNING", "warning": "WARNING"}


class Verb:
    """A verb of the command. `run` returns True for exit code 0 and False for 1."""

    name: ClassVar[str]
    help: ClassVar[str]

    def __init__(self, stdout: OutputWrapper, stderr: OutputWrapper, style: Style) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.style = style

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Adds the arguments of the verb."""

    def run(self, **options: Any) -> bool:
        raise NotImplementedError

    def write(self, text: str = "") -> None:
        self.stdout.write(text)

    def write_title(self, title: str) -> None:
        self.write(f"\n{self.style.MIGRATE_LABEL(title)}")

    def write_json(self, data: object) -> None:
        self.write(json.dumps(data, cls=DjangoJSONEncoder, indent=2, ensure_ascii=False))

    def paint(self, text: str, word: str) -> str:
        """The text in the colour of a status or level, if the terminal has colours."""
        colour = _COLOURS.get(word)
        return getattr(self.style, colour)(text) if colour else text

    @property
    def width(self) -> int:
        """Columns of the terminal. Without a terminal, lines are never truncated."""
        return shutil.get_terminal_size().columns if self.stdout.isatty() else 10_000


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def aligned(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """The rows as lines of aligned columns, without empty columns. The columns in `right` are aligned to the right."""
    right = set(right)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        INDENT.join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ).rstrip()
        for row in rows
    ]


def counted(count: int, noun: str, plural: str = "") -> str:
    """ "1 job", "1,200 jobs"."""
    return f"{number(count)} {noun if count == 1 else plural or f'{noun}s'}"


def printable(text: str) -> str:
    """On one line, without control characters."""
    return "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(1, width - 1)]}…"


def stamp(moment: datetime | None) -> str:
    """Date and time to the second, in the active time zone."""
    if moment is None:
        return ""
    return f"{timezone.localtime(moment) if timezone.is_aware(moment) else moment:%Y-%m-%d %H:%M:%S}"
