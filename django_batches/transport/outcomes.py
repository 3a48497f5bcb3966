"""The outcome of one run of a job, and the stream that carries it to the coordinator."""

import json
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


class Kind(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Raised an exception: uses an attempt."""
    RETRY = "retry"
    """Returned `rq.Retry`: uses one of its attempts."""
    TIMEOUT = "timeout"
    """Overran its timeout and was killed: uses an attempt."""
    KILLED = "killed"
    """Its worker died under it while the supervisor lived: uses an attempt, and is a loss."""
    STOPPED = "stopped"
    """Stopped on request through RQ: fails for good."""
    CANCELLED = "cancelled"
    """Cancelled in RQ before it ran."""
    ON_HOLD = "on_hold"
    """Not started, because its batch is cancelled or paused."""
    INTERRUPTED = "interrupted"
    """Its host was lost or shut down under it: runs again, no attempt used, and is a loss."""
    MISSING = "missing"
    """Its function cannot be imported on that worker (a rolling deploy): runs again later, and is a loss."""
    VANISHED = "vanished"
    """Gone from Redis before it started: runs again."""
    REFUSED = "refused"
    """The database refused what was to be written: fails for good."""


@dataclass(slots=True)
class Outcome:
    """What became of one dispatch of a job."""

    # Not frozen: that takes three times as long to make, and every job pays for it twice.

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
    """JSON text of what the function returned."""
    error_type: str = ""
    error: str = ""
    traceback: str = ""
    fingerprint: str = ""
    is_final: bool = False
    """No further attempt, whatever `max_attempts` says."""
    was_logged: bool = False
    """The worker that ran it has logged the failure, with its traceback."""
    has_children: bool = False
    """The run has opened child batches, with which the job ends."""
    returned: UUID | None = None
    """The child whose result the job takes."""
    retry_max: int | None = None
    retry_after: float | None = None
    """Seconds until the next attempt, where the job itself said so."""
    entry_id: bytes = field(default=b"", compare=False)
    """Its place in the stream."""

    @property
    def execution(self) -> tuple[UUID, int]:
        return self.job_id, self.dispatch

    def refused(self, error: Exception) -> "Outcome":
        """The outcome to record in place of this one, which the database would not take."""
        message = clean(f"The outcome ({self.kind}) could not be written: {type(error).__name__}: {error}", MAX_ERROR)
        return Outcome(
            Kind.REFUSED,
            self.job_id,
            self.dispatch,
            self.batch_id,
            self.is_job_of_batch,
            worker=clean_name(self.worker),
            error_type=clean_name(type(error).__name__),
            error=message,
            fingerprint=fingerprint(type(error).__name__, "record"),
            is_final=True,
            entry_id=self.entry_id,
        )

    def dumps(self) -> str:
        """Its text in the stream: short, because every job pays for it, and shortest for a plain success."""
        if self.kind is Kind.SUCCEEDED and not self.has_children and self.started_at and self.finished_at:
            return (
                f"{_PLAIN}{self.job_id.hex} {self.dispatch} {self.batch_id.hex} {0 if self.is_job_of_batch else 1}"
                f" {self.started_at.timestamp()!r} {self.finished_at.timestamp()!r} {self.result or ''}\n{self.worker}"
            )
        data: dict[str, Any] = {
            "k": self.kind.value,
            "j": self.job_id.hex,
            "d": self.dispatch,
            "b": self.batch_id.hex,
            "c": 0 if self.is_job_of_batch else 1,
            "w": self.worker,
            "s": _stamp(self.started_at),
            "f": _stamp(self.finished_at),
            "r": self.result,
        }
        if self.has_children:
            data |= {"h": 1, "y": self.returned.hex if self.returned else None}
        if self.kind != Kind.SUCCEEDED:
            data |= {
                "t": self.error_type, "e": self.error, "x": self.traceback, "p": self.fingerprint,
                "n": int(self.is_final), "l": int(self.was_logged), "m": self.retry_max, "a": self.retry_after,
            }  # fmt: skip
        return json.dumps(data, separators=(",", ":"), allow_nan=False)

    @classmethod
    def loads(cls, text: str | bytes, entry_id: bytes = b"") -> "Outcome":
        """Raises `ValueError` for text that is no outcome."""
        if isinstance(text, bytes):
            text = text.decode()
        try:
            if text.startswith(_PLAIN):
                return cls._plain(text, entry_id)
            data = json.loads(text)
            return cls(
                Kind(data["k"]), UUID(data["j"]), int(data["d"]), UUID(data["b"]), not data.get("c"),
                worker=str(data.get("w", "")), started_at=_start(data.get("s")), finished_at=_time(data.get("f")),
                result=_kept(data.get("r"), str), error_type=str(data.get("t", "")), error=str(data.get("e", "")),
                traceback=str(data.get("x", "")), fingerprint=str(data.get("p", "")),
                is_final=bool(data.get("n")), was_logged=bool(data.get("l")),
                has_children=bool(data.get("h")), returned=UUID(data["y"]) if data.get("y") else None,
                retry_max=_kept(data.get("m"), int), retry_after=_kept(data.get("a"), float, int), entry_id=entry_id,
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError) as error:
            raise ValueError(f"not an outcome: {error!r}") from error

    @classmethod
    def salvaged(cls, text: bytes, entry_id: bytes) -> "Outcome | None":
        """What can be said where `loads` refuses a text that names its job: the run counts as killed.

        Given back, it would run again without end: whatever wrote this text would write it again. None where it does
        not name a job.
        """
        try:
            data = json.loads(text)
            told = cls(Kind.KILLED, UUID(data["j"]), int(data["d"]), UUID(data["b"]), not data.get("c"))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            return None
        told.error_type, told.entry_id = "django_batches.unreadable", entry_id
        told.error = "The outcome of this run cannot be read: another version has written it."
        told.fingerprint = fingerprint(told.error_type, "")
        return told

    @classmethod
    def _plain(cls, text: str, entry_id: bytes) -> "Outcome":
        told, _, worker = text.partition("\n")
        job, dispatch, batch, is_callback, started, finished, result = told[len(_PLAIN) :].split(" ", 6)
        outcome = cls(Kind.SUCCEEDED, UUID(job), int(dispatch), _batch(batch), is_callback == "0", worker)
        outcome.started_at, outcome.finished_at = _time(float(started)), _time(float(finished))
        outcome.result, outcome.entry_id = result or None, entry_id
        return outcome


_batch = lru_cache(256)(UUID)  # one outcome after the other is of the same batch

_PLAIN = "+"
"""How the text of a plain success begins: fields with a blank between them; the result is JSON text of one line."""


def fingerprint(error_type: str, place: str) -> str:
    """Groups failures: the same exception at the same place has the same fingerprint."""
    return blake2s(f"{error_type}\n{place}".encode("utf-8", "replace"), digest_size=8).hexdigest()


def _kept(value: Any, *types: type) -> Any:
    """`value`, or None; raises `TypeError` for another type, which would stop the books and not the outcome alone."""
    if value is not None and type(value) not in types:
        raise TypeError(f"{type(value).__name__} in place of {types[0].__name__}")
    return value


def _stamp(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def rq_time(text: str) -> datetime | None:
    """A time as RQ writes it into the hash of a job; None for what is no time."""
    try:
        return _time(datetime.fromisoformat(text).timestamp())
    except ValueError:
        return None


def _start(told: float | str | None) -> datetime | None:
    """When a run began: a stamp by the executor; by the script that buries it, what RQ has."""
    return rq_time(told) if isinstance(told, str) else _time(told)


def _time(stamp: float | None) -> datetime | None:
    if stamp is None:
        return None
    moment = datetime.fromtimestamp(stamp, UTC)
    return moment if django_settings.USE_TZ else timezone.make_naive(moment)
