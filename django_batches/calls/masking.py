"""Masks sensitive values for the admin, the commands and error messages."""

import re
from functools import lru_cache
from typing import Any

from ..conf import settings

MASK = "••••"

_SEPARATORS = re.compile(r"[\W_]+")


def is_sensitive(name: str) -> bool:
    """Whether `name` contains one of the words in `SENSITIVE_KWARGS`, in any case and with any separators."""
    plain = _plain(name)
    return any(word in plain for word in _words(settings().SENSITIVE_KWARGS))


def masked_value(value: Any) -> Any:
    """Returns lists, tuples and dicts with the values of sensitive keys masked, and any other value unchanged."""
    if isinstance(value, dict):
        return {key: MASK if is_sensitive(str(key)) else masked_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked_value(item) for item in value]
    if isinstance(value, tuple):
        return tuple(masked_value(item) for item in value)
    return value


def _plain(name: str) -> str:
    return _SEPARATORS.sub("", name.casefold())


@lru_cache(maxsize=8)
def _words(given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_plain(word) for word in given)
