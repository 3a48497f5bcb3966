"""Finds batches by their whole id, its end or its beginning."""

from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.db.models import Q

from ...models import Batch
from ...monitoring.search import MIN_DIGITS, digits_of, id_is_or_ends_with
from .base import printable

SHORT = 12
"""Digits at the end of an id that lists show."""
MAX_NAMED = 5
BATCH_HELP = "id of a batch, or the end or beginning of its id"


def add_batches(parser: ArgumentParser) -> None:
    parser.add_argument("batches", nargs="+", metavar="batch", help=BATCH_HELP)


def short(batch: Batch) -> str:
    return batch.pk.hex[-SHORT:]


def titled(batch: Batch) -> str:
    """Its description and the end of its id."""
    return f"{printable(batch.description)} ({short(batch)})" if batch.description else f"Batch {short(batch)}"


def find(text: str) -> Batch:
    """The batch with this id. Raises `CommandError` if there is none, or more than one."""
    digits = digits_of(text)
    if not digits:
        raise CommandError(f"{text!r} is not the id of a batch: give all of it, or at least {MIN_DIGITS} digits.")
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    found = list(Batch.objects.filter(Q(pk__range=(first, last)) | id_is_or_ends_with(digits))[: MAX_NAMED + 1])
    if not found:
        raise CommandError(f"No batch has an id that is, ends or begins with {text}. See: manage.py batches list")
    if len(found) > 1:
        lines = [f"  {batch.pk}  {batch.status}  {printable(batch.description)}".rstrip() for batch in found]
        lines[MAX_NAMED:] = ["  and more"] if len(found) > MAX_NAMED else []
        raise CommandError("\n".join([f"{text} is ambiguous: give more digits of one of these.", *lines]))
    return found[0]


def find_all(texts: list[str]) -> list[Batch]:
    """All the batches, without duplicates. Raises `CommandError` if one is not found."""
    return list({batch.pk: batch for batch in map(find, texts)}.values())
