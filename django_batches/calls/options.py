"""Validates the options of batches and jobs when you pass them, not later in a worker."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings as django_settings
from django.utils import timezone
from django.utils.functional import Promise

from ..conf import settings
from .arguments import UNSTORABLE

DEFAULT_QUEUE = "default"

Seconds = int | float | timedelta
RunAfter = timedelta | datetime


@dataclass(frozen=True)
class Exponential:
    """A backoff that grows with each attempt; the return value of `exponential(...)`."""

    first: float
    factor: float
    limit: float
    jitter: float


Backoff = Seconds | Sequence[Seconds] | Exponential
ErrorTypes = type[BaseException] | Iterable[type[BaseException]]


def exponential(first: Seconds = 1, *, factor: float = 2, limit: Seconds = 3600, jitter: float = 0.5) -> Exponential:
    """Returns a backoff that starts with `first` and is multiplied by `factor` after each attempt, up to `limit`.

    `first` and `limit` are in seconds or timedeltas. `jitter`, from 0.0 to 1.0, is the random fraction of each delay,
    so that jobs that failed together do not run again together. Raises `TypeError` or `ValueError`.
    """
    for name, value in (("factor", factor), ("jitter", jitter)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise TypeError(f"{name}: {value!r} must be a finite number.")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter: {jitter!r} must be between 0.0 and 1.0.")
    if factor < 1:
        raise ValueError(f"factor: {factor!r} must be 1 or more.")
    return Exponential(seconds(first, "first"), float(factor), seconds(limit, "limit"), float(jitter))


@dataclass(frozen=True)
class Options:
    """Validated options of jobs, in the form in which the columns store them."""

    queue: str
    timeout: int
    """Seconds."""
    max_attempts: int
    backoff: str
    """JSON: the seconds before the next attempt, a list with one number for each, or an `Exponential`'s fields."""
    no_retry: str = "[]"
    """JSON list of the dotted paths of the exception types after which no further attempt follows."""

    @classmethod
    def of(cls, **given: Any) -> "Options":
        """Validates the given options, and uses defaults for the others. Raises `TypeError` or `ValueError`."""
        values = {"queue": None, "timeout": None, "max_attempts": 1, "backoff": 0, "no_retry": ()} | given
        return cls(**{name: _CHECKS[name](value) for name, value in values.items()})

    def using(self, **changes: Any) -> "Options":
        """Returns a copy with those changes that are not None. Raises the same as `of`."""
        return replace(self, **{name: _CHECKS[name](value) for name, value in changes.items() if value is not None})


def seconds(value: Any, name: str) -> float:
    """Converts a number or a timedelta to seconds. Raises `TypeError`, or `ValueError` if it is out of range."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: {value!r} is neither seconds nor a timedelta.")
    if not 0 <= value < 2**31:
        raise ValueError(f"{name}: {value!r} must be a finite number of seconds, 0 or more and below 68 years.")
    return float(value)


def text(value: Any, name: str, longest: int | None = None) -> str:
    """Returns a string, also from a lazy translation. Raises `TypeError`, or `ValueError` if it cannot be stored."""
    if isinstance(value, Promise):
        value = str(value)
    if longest is not None and not (isinstance(value, str) and 1 <= len(value) <= longest):
        raise ValueError(f"{name}: {value!r} must be a string of 1 to {longest} characters, or None.")
    if not isinstance(value, str):
        raise TypeError(f"{name}: {value!r} is not a string: pass str({name}).")
    if UNSTORABLE.search(value):
        raise ValueError(f"{name}: {value!r} contains a NUL or a lone surrogate, which databases refuse: remove it.")
    return value


def earliest_start(value: Seconds | datetime) -> RunAfter:
    """Validates the option `run_after`: a datetime, or a delay in seconds or as a timedelta."""
    if not isinstance(value, datetime):
        return timedelta(seconds=seconds(value, "run_after"))
    if django_settings.USE_TZ and timezone.is_naive(value):
        raise ValueError(f"run_after: {value!r} has no time zone: use django.utils.timezone.make_aware().")
    if not django_settings.USE_TZ and timezone.is_aware(value):
        return timezone.make_naive(value, timezone.get_default_timezone())  # as the database stores it
    return value


def whole_seconds(value: Seconds, name: str) -> int:
    """Converts to whole seconds, rounded up. Raises `TypeError`, or `ValueError` if the result is below one."""
    # RQ and the alarm that limits a run use whole seconds, and 0 would mean no alarm.
    found = math.ceil(seconds(value, name))
    if not 1 <= found < 2**31:
        raise ValueError(f"{name}: {value!r} must be at least one second, and below 68 years.")
    return found


def _queue(value: str | None) -> str:
    value = DEFAULT_QUEUE if value is None else value
    if not isinstance(value, str) or not value or len(value) > 100 or not value.isprintable():
        raise ValueError(f"queue: {value!r} must be a name of 1 to 100 printable characters.")
    return value


def whole_number(value: Any, name: str, least: int, *, or_none: bool = False) -> Any:
    """Returns an integer of at least `least`, or None if `or_none` allows it. Raises `ValueError`."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if (value is None and or_none) or (is_whole and least <= value < 2**31):
        return value
    raise ValueError(f"{name}: {value!r} must be a whole number, {least} or more{', or None' * or_none}.")


def _no_retry(value: ErrorTypes) -> str:
    types = [value] if isinstance(value, type) else value
    if isinstance(types, str) or not isinstance(types, Iterable):
        raise TypeError(f"no_retry: {value!r} is neither an exception type nor a list of them.")
    types = list(types)
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(f"no_retry: {kind!r} is not an exception type.")
    return json.dumps([type_path(kind) for kind in types])


def type_path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _backoff(value: Backoff) -> str:
    if isinstance(value, Exponential):
        return json.dumps(vars(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ValueError("backoff: the list is empty; write 0 for no delay.")
        return json.dumps([seconds(item, "backoff") for item in value])
    return json.dumps(seconds(value, "backoff"))


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "queue": _queue,
    "timeout": lambda value: whole_seconds(settings().DEFAULT_TIMEOUT if value is None else value, "timeout"),
    "max_attempts": lambda value: whole_number(value, "max_attempts", 1),
    "backoff": _backoff,
    "no_retry": _no_retry,
}
"""Each function validates an option and converts it to the value of its column."""
