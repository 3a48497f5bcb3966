"""The base class of the verbs, and functions that find batches by id and format the output."""

import json
import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Q
from django.utils import timezone

from ...models import Batch
from ...monitoring.formatting import number
from ...monitoring.search import MIN_DIGITS, digits_of, id_is_or_ends_with

INDENT = "  "
SHORT = 12
"""How many digits lists show from the end of an id."""
MAX_NAMED = 5
BATCH_HELP = "id of a batch, or the end or beginning of its id"
_COLOURS = {"succeeded": "SUCCESS", "failed": "ERROR", "error": "ERROR", "cancelled": "WARNING", "warning": "WARNING"}


class Verb:
    """A verb of the command. `run` returns True for exit code 0 and False for 1."""

    help: ClassVar[str]
    has_json = True

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
        """The columns of the terminal. Without a terminal, lines are not truncated."""
        return shutil.get_terminal_size().columns if self.stdout.isatty() else 10_000


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Formats the rows in aligned columns, without empty columns. The columns in `right` are aligned to the right."""
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
    """Formats a count with its noun: "1 job", "1,200 jobs"."""
    return f"{number(count)} {noun if count == 1 else plural or f'{noun}s'}"


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(1, width - 1)]}…"


def stamp(moment: datetime | None) -> str:
    """Formats a date and time to the second, in the active time zone."""
    if moment is None:
        return ""
    return f"{timezone.localtime(moment) if timezone.is_aware(moment) else moment:%Y-%m-%d %H:%M:%S}"


def add_batches(parser: ArgumentParser) -> None:
    parser.add_argument("batches", nargs="+", metavar="batch", help=BATCH_HELP)


def short(batch: Batch) -> str:
    return batch.pk.hex[-SHORT:]


def titled(batch: Batch) -> str:
    return f"{printable(batch.description)} ({short(batch)})" if batch.description else f"Batch {short(batch)}"


def find(text: str) -> Batch:
    """Returns the batch with this id, or part of an id. Raises `CommandError` if there is none, or more than one."""
    digits = digits_of(text)
    if not digits:
        raise CommandError(f"{text!r} is not the id of a batch: give the whole id, or at least {MIN_DIGITS} digits.")
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    found = list(Batch.objects.filter(Q(pk__range=(first, last)) | id_is_or_ends_with(digits))[: MAX_NAMED + 1])
    if not found:
        raise CommandError(f"No batch has an id that begins or ends with {text}. See: manage.py batches list")
    if len(found) > 1:
        lines = [f"  {batch.pk}  {batch.status}  {printable(batch.description)}".rstrip() for batch in found]
        lines[MAX_NAMED:] = ["  and more"] if len(found) > MAX_NAMED else []
        raise CommandError("\n".join([f"{text} is ambiguous: give more digits of one of these.", *lines]))
    return found[0]


def find_all(texts: list[str]) -> list[Batch]:
    """Returns all the batches, without duplicates. Raises `CommandError` if one is not found."""
    return list({batch.pk: batch for batch in map(find, texts)}.values())
