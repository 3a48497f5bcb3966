"""What the verbs share: name, arguments, output."""

import json
import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar

from django.core.management.base import BaseCommand
from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from ...monitoring.formatting import number

INDENT = "  "
_COLOURS = {"succeeded": "SUCCESS", "failed": "ERROR", "error": "ERROR", "cancelled": "WARNING", "warning": "WARNING"}


class Verb:
    """A verb of the command. `run` returns True for exit code 0 and False for 1."""

    help: ClassVar[str]
    has_json = True
    """Whether it has the option `--json`."""

    def __init__(self, command: BaseCommand) -> None:
        self.stdout, self.stderr, self.style = command.stdout, command.stderr, command.style
        self.write = self.stdout.write

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Adds the arguments of the verb, except `--json`."""

    def run(self, **options: Any) -> bool:
        raise NotImplementedError

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


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """The rows as lines of aligned columns, without empty columns. The columns in `right` are aligned to the right."""
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
