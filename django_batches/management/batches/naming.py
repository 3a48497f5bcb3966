"""Batches by what people type: the whole id, its end or its beginning."""

from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.db.models import CharField, QuerySet, Value
from django.db.models.functions import Cast, Replace

from ...models import Batch
from .verb import printable

SHORTEST = 4
SHOWN = 12
"""Digits of the end of an id by which the lists name a batch."""
NAMED = 5


def add_batches(parser: ArgumentParser) -> None:
    parser.add_argument("batches", nargs="+", metavar="batch", help="id of a batch, or the end or beginning of one")


def short(batch: Batch) -> str:
    return batch.pk.hex[-SHOWN:]


def titled(batch: Batch) -> str:
    """Its description and the end of its id."""
    return f"{printable(batch.description)} ({short(batch)})" if batch.description else f"Batch {short(batch)}"


def find(text: str) -> Batch:
    """The batch that is meant; raises `CommandError` where there is none, or more than one."""
    digits = text.replace("-", "").lower()
    if not SHORTEST <= len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
        raise CommandError(f"{text!r} is no id of a batch: give it whole, or at least {SHORTEST} digits of its end.")
    found = list(_matching(digits)[: NAMED + 1])
    if not found:
        raise CommandError(f"No batch has the id {text}, or one that ends or begins so. See: manage.py batches list")
    if len(found) > 1:
        lines = [f"  {batch.pk}  {batch.status}  {printable(batch.description)}".rstrip() for batch in found[:NAMED]]
        more = ["  and more"] if len(found) > NAMED else []
        raise CommandError("\n".join([f"{text} is ambiguous: give more digits of one of these.", *lines, *more]))
    return found[0]


def find_all(texts: list[str]) -> list[Batch]:
    """All of them, each once; nothing has been done where one is not found."""
    return list({batch.pk: batch for batch in map(find, texts)}.values())


def _matching(digits: str) -> "QuerySet[Batch]":
    if len(digits) == 32:
        return Batch.objects.filter(pk=UUID(digits))
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    # PostgreSQL writes a key with hyphens, SQLite without.
    hexadecimal = Replace(Cast("pk", CharField()), Value("-"), Value(""))
    batches = Batch.objects.annotate(hexadecimal=hexadecimal)
    return batches.filter(pk__range=(first, last)) | batches.filter(hexadecimal__endswith=digits)
