"""Searches batches by the end of their id, for the admin and the commands."""

from uuid import UUID

from django.db.models import CharField, Q, Value
from django.db.models.functions import Cast, Replace
from django.db.models.lookups import EndsWith

MIN_DIGITS = 4


def digits_of(text: str) -> str:
    """Returns the hexadecimal digits of an id or of a part of an id; empty if the text is neither."""
    digits = text.replace("-", "").lower()
    return digits if MIN_DIGITS <= len(digits) <= 32 and not set(digits) - set("0123456789abcdef") else ""


def id_is_or_ends_with(digits: str) -> Q:
    if len(digits) == 32:
        return Q(pk=UUID(digits))
    # As text, a key has hyphens in PostgreSQL but none in SQLite.
    return Q(EndsWith(Replace(Cast("pk", CharField()), Value("-"), Value("")), Value(digits)))
