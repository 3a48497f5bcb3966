"""The options of jobs, judged once: a wrong one raises where it is written, not in a worker at night."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .conf import settings

Seconds = int | float | timedelta
Backoff = Seconds | Sequence[Seconds]


@dataclass(frozen=True)
class Options:
    """How the jobs of a batch run."""

    queue: str
    timeout: int
    """Seconds."""
    max_attempts: int
    backoff: str
    """JSON: seconds before the next attempt, or a list of them, one per attempt."""

    @classmethod
    def of(cls, queue: str | None, timeout: Seconds | None, max_attempts: int, backoff: Backoff) -> "Options":
        """Judges what a user gave; raises `TypeError` or `ValueError`."""
        return cls(
            queue=_queue("default" if queue is None else queue),
            timeout=_timeout(settings().DEFAULT_TIMEOUT if timeout is None else timeout),
            max_attempts=_max_attempts(max_attempts),
            backoff=_backoff(backoff),
        )

    def using(
        self,
        queue: str | None = None,
        timeout: Seconds | None = None,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
    ) -> "Options":
        """The same with some of them changed."""
        return Options(
            queue=self.queue if queue is None else _queue(queue),
            timeout=self.timeout if timeout is None else _timeout(timeout),
            max_attempts=self.max_attempts if max_attempts is None else _max_attempts(max_attempts),
            backoff=self.backoff if backoff is None else _backoff(backoff),
        )


def seconds(value: Any, name: str) -> float:
    """Seconds of a number or a timedelta; raises `TypeError` or, for a negative one, `ValueError`."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: {value!r} is neither seconds nor a timedelta.")
    if value < 0 or not math.isfinite(value):
        raise ValueError(f"{name}: {value!r} must be a finite number of seconds, 0 or more.")
    return float(value)


def _timeout(value: Seconds) -> int:
    # RQ and the alarm know whole seconds; 0 would mean "no alarm".
    timeout = math.ceil(seconds(value, "timeout"))
    if not 1 <= timeout < 2**31:
        raise ValueError(f"timeout: {value!r} must be at least one second.")
    return timeout


def _queue(value: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 100 or not value.isprintable():
        raise ValueError(f"queue: {value!r} must be a name of 1 to 100 printable characters.")
    return value


def _max_attempts(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ValueError(f"max_attempts: {value!r} must be a whole number, 1 or more.")
    return value


def _backoff(value: Backoff) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ValueError("backoff: the list is empty; write 0 for no delay.")
        return json.dumps([seconds(item, "backoff") for item in value])
    return json.dumps(seconds(value, "backoff"))
