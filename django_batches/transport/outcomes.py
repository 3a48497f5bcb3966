"""The outcome of one run of a job, and its text in the outcome stream."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2s
from typing import Any
from uuid import UUID

from django.conf import settings as django_settings
from django.utils import timezone

from ..calls.arguments import MAX_ERROR, clean, clean_name
from .vanished import VanishReason


class Kind(StrEnum):
    """How a run ended. A loss is a run whose worker was killed or lost, or could not import the function."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Raised an exception: uses an attempt."""
    RETRY = "retry"
    """Returned `rq.Retry`: uses an attempt."""
    TIMEOUT = "timeout"
    """Exceeded its timeout and was killed: uses an attempt."""
    KILLED = "killed"
    """Its process died while the supervisor lived: uses an attempt, and is a loss."""
    STOPPED = "stopped"
    """Stopped on request through RQ: fails for good."""
    CANCELLED = "cancelled"
    """Cancelled in RQ before it ran."""
    ON_HOLD = "on_hold"
    """Not started, because its batch is cancelled or paused."""
    INTERRUPTED = "interrupted"
    """Its host was lost or shut down while it ran: runs again without using an attempt, and is a loss."""
    MISSING = "missing"
    """Its function cannot be imported on that worker (a rolling deploy): runs again later, and is a loss."""
    VANISHED = "vanished"
    """Never started, see `VanishReason`: runs again without using an attempt."""
    REFUSED = "refused"
    """The database refused its outcome: fails for good."""


@dataclass(slots=True)
class Outcome:
    """The outcome of one dispatch of a job."""

    # Not frozen: creating it would take three times as long, and every job pays for it twice.

    kind: Kind
    job_id: UUID
    dispatch: int
    batch_id: UUID
    is_job_of_batch: bool = True
    """False for a callback."""
    worker: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: str | None = None
    """The return value as JSON."""
    error_type: str = ""
    error: str = ""
    traceback: str = ""
    fingerprint: str = ""
    reason: VanishReason | None = None
    """For the kind `VANISHED` only."""
    is_final: bool = False
    """No further attempt, whatever `max_attempts` is."""
    was_logged: bool = False
    """The worker has logged the failure, with its traceback, or why it did not start the job."""
    has_children: bool = False
    """The run has opened child batches; the job ends with them."""
    returned: UUID | None = None
    """The child batch whose result becomes the job's."""
    retry_max: int | None = None
    retry_after: float | None = None
    """Seconds until the next attempt, if the job returned `rq.Retry`."""
    entry_id: bytes = field(default=b"", compare=False)
    """Its entry in the stream."""

    @property
    def execution(self) -> tuple[UUID, int]:
        return self.job_id, self.dispatch

    def refused(self, error: Exception) -> "Outcome":
        """The outcome that replaces this one if the database refuses it."""
        message = clean(f"The outcome ({self.kind}) could not be written: {type(error).__name__}: {error}", MAX_ERROR)
        name = clean_name(type(error).__name__)
        return Outcome(
            Kind.REFUSED, self.job_id, self.dispatch, self.batch_id, self.is_job_of_batch, clean_name(self.worker),
            error_type=name, error=message, fingerprint=fingerprint(name, "record"), is_final=True,
            entry_id=self.entry_id,
        )  # fmt: skip

    def dumps(self) -> str:
        """The text in the stream: short, because every job pays for it, and shortest for a plain success."""
        if self.kind is Kind.SUCCEEDED and not self.has_children and self.started_at and self.finished_at:
            return (
                f"{_PLAIN}{self.job_id.hex} {self.dispatch} {self.batch_id.hex} {0 if self.is_job_of_batch else 1}"
                f" {self.started_at.timestamp()!r} {self.finished_at.timestamp()!r} {self.result or ''}\n{self.worker}"
            )
        data = {name: value for name in _LOADERS if (value := getattr(self, name)) not in (None, "")}
        return json.dumps(data, separators=(",", ":"), allow_nan=False, default=_dumps)

    @classmethod
    def loads(cls, text: str | bytes, entry_id: bytes = b"") -> "Outcome":
        """Raises `ValueError` if the text is not an outcome."""
        if isinstance(text, bytes):
            text = text.decode()
        try:
            if text.startswith(_PLAIN):
                head, _, worker = text.partition("\n")
                job, dispatch, batch, is_callback, started, finished, result = head[len(_PLAIN) :].split(" ", 6)
                outcome = cls(Kind.SUCCEEDED, UUID(job), int(dispatch), _batch_id(batch), is_callback == "0", worker)
                outcome.started_at, outcome.finished_at = _time(float(started)), _time(float(finished))
                outcome.result, outcome.entry_id = result or None, entry_id
                return outcome
            data = json.loads(text)
            values: Any = {name: load(data[name]) for name, load in _LOADERS.items() if data.get(name) is not None}
            return cls(**values, entry_id=entry_id)
        except (KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError) as error:
            raise ValueError(f"not an outcome: {error!r}") from error

    @classmethod
    def salvaged(cls, text: bytes, entry_id: bytes) -> "Outcome | None":
        """The outcome for a text that `loads` refuses: killed. None if the text names no job.

        A kind that uses no attempt would repeat without end, because the same writer would write the same text again.
        """
        try:
            data = json.loads(text)
            job_id, dispatch, batch_id = UUID(data["job_id"]), int(data["dispatch"]), UUID(data["batch_id"])
            is_job_of_batch = bool(data.get("is_job_of_batch", True))
            error = own_error("unreadable", "The outcome of this run cannot be read: another version has written it.")
            return cls(Kind.KILLED, job_id, dispatch, batch_id, is_job_of_batch, entry_id=entry_id, **error)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            return None


_batch_id = lru_cache(256)(UUID)  # consecutive outcomes are mostly of the same batch

_PLAIN = "+"
"""The first character of a plain success. Spaces separate its fields; the result is JSON on one line."""


def vanished(reason: VanishReason, detail: object = "") -> dict[str, Any]:
    """The fields of an outcome of kind `VANISHED`."""
    text = clean(f"{reason.text}: {detail}" if detail else f"{reason.text}.", MAX_ERROR)
    return {"reason": reason, **own_error(Kind.VANISHED, text)}


def own_error(name: str, text: str) -> dict[str, Any]:
    """The fields of an outcome for an error that the job's code did not raise."""
    error_type = f"django_batches.{name}"
    return {"error_type": error_type, "error": text, "fingerprint": fingerprint(error_type, "")}


def fingerprint(error_type: str, place: str) -> str:
    """Groups failures: the same exception at the same place has the same fingerprint."""
    return blake2s(f"{error_type}\n{place}".encode("utf-8", "replace"), digest_size=8).hexdigest()


def rq_time(text: str | bytes | None) -> datetime | None:
    """A time in RQ's hash of a job; None if it is missing or malformed."""
    try:
        return _time(datetime.fromisoformat((text.decode() if isinstance(text, bytes) else text) or "").timestamp())
    except ValueError:
        return None


def _exactly(*types: type) -> Callable[[Any], Any]:
    """Raises `TypeError` for another type: it would reach the database and stop the coordinator, not this job only."""

    def load(value: Any) -> Any:
        if type(value) not in types:
            raise TypeError(f"{type(value).__name__} instead of {types[0].__name__}")
        return value

    return load


def _started_at(value: float | str) -> datetime | None:
    """An executor writes a timestamp; the script that reaps an executor copies RQ's text."""
    return rq_time(value) if isinstance(value, str) else _time(value)


def _time(timestamp: float) -> datetime:
    moment = datetime.fromtimestamp(timestamp, UTC)
    return moment if django_settings.USE_TZ else timezone.make_naive(moment)


def _dumps(value: UUID | datetime) -> str | float:
    return value.hex if isinstance(value, UUID) else value.timestamp()


_LOADERS: dict[str, Callable[[Any], Any]] = {
    "kind": Kind,
    "job_id": UUID,
    "dispatch": int,
    "batch_id": UUID,
    "is_job_of_batch": bool,
    "worker": str,
    "started_at": _started_at,
    "finished_at": _time,
    "result": _exactly(str),
    "error_type": str,
    "error": str,
    "traceback": str,
    "fingerprint": str,
    "reason": VanishReason.loads,
    "is_final": bool,
    "was_logged": bool,
    "has_children": bool,
    "returned": UUID,
    "retry_max": _exactly(int),
    "retry_after": _exactly(float, int),
}
"""The fields in the stream, and how their JSON values are read."""
