"""Converts arguments and results to JSON text, and error messages to text that every database accepts.

PostgreSQL refuses NUL and lone surrogates in text, and one refused row would roll back the bulk transaction that writes
it. The JSON is therefore pure ASCII.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..conf import settings
from .functions import is_masked
from .masking import MASK, masked_value

MAX_ERROR = 2_000
"""How many characters of an error message are kept."""
MAX_TRACEBACK = 32_000
"""How many characters of a traceback are kept, half of them from each end."""
MAX_NAME = 200
"""The longest name of a worker or an exception type, in characters."""
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""Matches the characters that PostgreSQL refuses in text."""


def dump_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]) -> str:
    """Returns the JSON text of a call's arguments. Error messages use `names` for the positional arguments.

    Raises `TypeError` for a value that JSON cannot represent, and `ValueError` for more than `MAX_PAYLOAD` bytes.
    """
    positional = [(names[index] if index < len(names) else f"argument {index + 1}", v) for index, v in enumerate(args)]
    checked = [*positional, *kwargs.items()]
    return _dumps([args, kwargs], checked, "The arguments are", "store the data and pass its key")


def dump_result(value: Any) -> str:
    """Returns the JSON text of a job's result. Raises the same exceptions as `dump_arguments`."""
    return _dumps(value, [("the result", value)], "The result is", "store the data and return its key")


def check_metadata(value: Any) -> dict[str, Any]:
    """Returns the metadata of a batch. Raises `TypeError` or `ValueError` if it cannot be stored."""
    if not isinstance(value, dict):
        raise TypeError(f"metadata: {value!r} is not a dict.")
    _dumps(value, [("metadata", value)], "metadata is", "store the data elsewhere")
    if any(UNSTORABLE.search(text) for text in _strings(value)):
        raise ValueError("metadata contains a NUL or a lone surrogate, which databases refuse: remove it.")
    return value


def load_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = json.loads(text)
    return args, kwargs


def masked_arguments(func: str, text: str, *, is_callback: bool = False) -> str:
    """Masks the values whose names match `SENSITIVE_KWARGS` in the JSON text of a call's arguments.

    The signature of the function at the dotted path `func` names the positional arguments; without one, all of them are
    masked. If `text` is not the JSON of a call, all of it is masked.
    """
    leading = 1 if is_callback else 0

    def mask(call: Any) -> Any:
        args, kwargs = call
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise TypeError
        shown = [MASK if is_masked(func, leading + index) else masked_value(value) for index, value in enumerate(args)]
        return [shown, masked_value(kwargs)]

    return _masked(text, mask)


def masked_result(text: str) -> str:
    """Masks the values whose keys match `SENSITIVE_KWARGS` in the JSON text of a result."""
    return _masked(text, masked_value)


def _masked(text: str, mask: Callable[[Any], Any]) -> str:
    try:
        shown = json.dumps(mask(json.loads(text)), separators=(",", ":"), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # something else wrote the row
        return MASK
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", shown)  # a lone surrogate would break the response


def clean(text: str, limit: int) -> str:
    """Makes `text` acceptable to every database. Cuts the middle out of more than `limit` characters."""
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n… {len(text) - limit:,} characters cut …\n{text[-half:]}"
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def clean_name(text: str) -> str:
    """Makes `text` acceptable to every database, and cuts it to `MAX_NAME` characters."""
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text[:MAX_NAME])


def _dumps(value: Any, checked: Iterable[tuple[str, Any]], what: str, fix: str) -> str:
    """Checks the named values that `value` consists of, and returns its JSON text."""
    try:
        for name, part in checked:
            _check(part, name)
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError(f"{what} nested too deeply, or a list or dict contains itself: {fix}.") from None
    except ValueError as error:
        raise ValueError(f"{what} not JSON, because a number is too long ({error}): pass str(number).") from None
    limit = settings().MAX_PAYLOAD
    if len(text) > limit:
        raise ValueError(f"{what} {len(text):,} bytes of JSON, more than MAX_PAYLOAD ({limit:,}): {fix}.")
    return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _strings(item)


def _check(value: Any, name: str) -> None:
    if value is None or isinstance(value, str | bool | int):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{name}: {value} does not exist in JSON: pass None or a string.")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{name}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                fix = "pass str keys, or a list of pairs"
                raise TypeError(f"{name}: the key {key!r} of the dict would become a string in JSON: {fix}.")
            _check(item, f"{name}[{key!r}]")
    else:
        raise TypeError(f"{name}: {_described(value)} cannot be passed as JSON: {_fix(value, name)}.")


def _described(value: Any) -> str:
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def _fix(value: Any, name: str) -> str:
    if hasattr(value, "_meta") and hasattr(value, "pk"):
        pk = f"{name}.pk" if name.isidentifier() else "its pk"
        return f"pass {pk} and load the row in the job" if isinstance(value.pk, int) else f"pass str({pk})"
    if isinstance(value, bytes | bytearray | memoryview):
        return "store the data and pass its key, or encode it as base64"
    if isinstance(value, set | frozenset):
        return f"pass sorted({name})"
    if hasattr(value, "isoformat"):
        return f"pass {name}.isoformat()"
    return f"pass str({name})"
