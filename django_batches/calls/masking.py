"""Values that must not be read over a shoulder: which names hold them, and JSON text without them.

The one place that decides; the admin, the commands and the texts of errors ask here.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ..conf import settings

MASK = "••••"

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{},:]|[^\s"\[\]{},:]+|\s+', re.DOTALL)
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)", re.DOTALL)
_UNLIKE = re.compile(r"[\W_]+")


def is_sensitive(name: str) -> bool:
    """Whether a value of this name is masked: it contains one of `SENSITIVE_KWARGS`, whatever case and separators."""
    plain = _plain(name)
    return any(word in plain for word in _words(settings().SENSITIVE_KWARGS))


def masked_json(text: str, is_masked: Callable[[int, int], bool] = lambda index, place: False) -> str:
    """JSON text with `MASK` for each value whose key is sensitive, and for those that `is_masked` names.

    `is_masked(0, 3)` is asked for the fourth value of the first list in the outermost list. The text may be cut off
    anywhere, so it is read token by token and not parsed; what is cut off is not shown, and no value goes without its
    key. The result is JSON where `text` was.
    """
    return _Masker(is_masked).run(text)


def masked_value(value: Any) -> Any:
    """Lists, tuples and dicts with `MASK` for the values whose key is sensitive; anything else as it is."""
    if type(value) is dict:
        return {key: MASK if is_sensitive(str(key)) else masked_value(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(masked_value(item) for item in value)
    return value


class _Masker:
    def __init__(self, is_masked: Callable[[int, int], bool]) -> None:
        self._is_masked = is_masked
        self._shown: list[str] = []
        self._open: list[_Container] = []
        self._hidden_at: int | None = None
        """Depth of the value that is being left out."""

    def run(self, text: str) -> str:
        for token in _TOKEN.findall(text):
            self._read(token)
        return "".join(self._shown)

    def _read(self, token: str) -> None:
        inner = self._open[-1] if self._open else None
        if token in "]}":
            self._show(token)
            del self._open[-1:]
            if self._hidden_at is not None and len(self._open) <= self._hidden_at:
                self._hidden_at = None
            return
        if token == "," and inner:
            inner.next()
        elif token == ":" and inner:
            inner.is_key = False
        elif inner and inner.is_key and token[0] == '"':
            inner.key = _unescaped(token)
        elif not token.isspace() and token not in ",:":
            self._value(token)
            return
        self._show(token)

    def _value(self, token: str) -> None:
        if self._hidden_at is None and self._must_hide():
            self._shown.append(f'"{MASK}"')
            if token in "[{":
                self._hidden_at = len(self._open)
        else:
            self._show(token)
        if token in "[{":
            self._open.append(_Container(is_key=token == "{", is_dict=token == "{"))

    def _must_hide(self) -> bool:
        if not self._open:
            return False
        inner = self._open[-1]
        if inner.is_dict:
            return is_sensitive(inner.key)
        return len(self._open) == 2 and not self._open[0].is_dict and self._is_masked(self._open[0].index, inner.index)

    def _show(self, token: str) -> None:
        if self._hidden_at is None:
            self._shown.append(token)


class _Container:
    """A list or a dict that is being read."""

    def __init__(self, *, is_key: bool, is_dict: bool) -> None:
        self.is_key = is_key
        self.is_dict = is_dict
        self.index = 0
        self.key = ""

    def next(self) -> None:
        self.index += 1
        self.is_key, self.key = self.is_dict, ""


def _unescaped(token: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2], token.strip('"'))


def _plain(name: str) -> str:
    return _UNLIKE.sub("", name.casefold())


@lru_cache(maxsize=8)
def _words(given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_plain(word) for word in given)
