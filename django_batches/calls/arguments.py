"""JSON text for arguments and results, and clean text for errors.

The JSON is pure ASCII, so that every database accepts it. PostgreSQL refuses NUL and lone surrogates in text, and one
refused row would roll back the bulk transaction of all others.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..conf import settings
from .functions import is_masked
from .masking import MASK, masked_value

MAX_ERROR = 2_000
"""Characters of an error message that are kept."""
MAX_TRACEBACK = 32_000
"""Characters of a traceback that are kept, half of them from each end."""
MAX_NAME = 200
"""Characters of the name of a worker or of an exception type."""
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""Characters that some database refuses in text."""


def dump_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]) -> str:
    """The JSON text of a call's arguments. `names` are those of the positional arguments, for error messages.

    Raises `TypeError` for a value that would not come back equal, and `ValueError` for more than `MAX_PAYLOAD` bytes.
    """
    with _errors_of_json("The arguments"):
        for index, value in enumerate(args):
            _check(value, names[index] if index < len(names) else f"argument {index + 1}")
        for name, value in kwargs.items():
            _check(value, name)
        text = _dumps([args, kwargs])
    return _limited(text, "The arguments are", "store the data and pass its key")


def dump_result(value: Any) -> str:
    """The JSON text of a job's result; raises as `dump_arguments` does."""
    with _errors_of_json("The result"):
        _check(value, "the result")
        text = _dumps(value)
    return _limited(text, "The result is", "store the data and return its key")


def check_metadata(value: Any) -> dict[str, Any]:
    """The metadata of a batch, if it can be stored; raises `TypeError` or `ValueError`."""
    if not isinstance(value, dict):
        raise TypeError(f"metadata: {value!r} is not a dict.")
    with _errors_of_json("metadata"):
        _check(value, "metadata")
        text = _dumps(value)
    _limited(text, "metadata is", "store the data elsewhere")
    if any(UNSTORABLE.search(text) for text in _strings(value)):
        raise ValueError("metadata contains a NUL or a lone surrogate, which databases refuse: remove it.")
    return value


def load_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = json.loads(text)
    return args, kwargs


def masked_arguments(func: str, text: str, *, is_callback: bool = False) -> str:
    """The JSON text of a call's arguments, without the values that `SENSITIVE_KWARGS` names.

    The signature of `func`, a dotted path, names the positional arguments. All of them are masked if it cannot be
    found. Text that is not the JSON of a call is masked as a whole.
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
    """The JSON text of a result, without the values that `SENSITIVE_KWARGS` names."""
    return _masked(text, masked_value)


def _masked(text: str, mask: Callable[[Any], Any]) -> str:
    try:
        shown = json.dumps(mask(json.loads(text)), separators=(",", ":"), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # a row that something else has written
        return MASK
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", shown)  # no response can carry a lone surrogate


def clean(text: str, limit: int) -> str:
    """`text` for any database. If it is longer than `limit` characters, its middle is cut out."""
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n… {len(text) - limit:,} characters cut …\n{text[-half:]}"
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def clean_name(text: str) -> str:
    """`text` for a column of `MAX_NAME` characters."""
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text[:MAX_NAME])


@contextmanager
def _errors_of_json(what: str) -> Iterator[None]:
    """Adds the fix to the errors that Python's own JSON module raises."""
    try:
        yield
    except RecursionError:
        fix = "store the data and pass its key"
        raise ValueError(f"{what}: lists or dicts contain themselves, or are nested too deeply: {fix}.") from None
    except ValueError as error:
        raise ValueError(f"{what}: a number is too long for JSON ({error}): pass str(number).") from None


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _limited(text: str, what: str, fix: str) -> str:
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
                raise TypeError(f"{name}: the key {key!r} of the dict would become a string: {fix}.")
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
