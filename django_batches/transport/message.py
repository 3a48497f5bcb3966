"""The message that carries a job through Redis: the coordinator writes it, the worker reads it."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..conf import LARGEST_PAYLOAD
from .outcomes import Kind, Outcome, vanished
from .vanished import VanishReason

if TYPE_CHECKING:
    from ..transitions.claiming import Claimed

MAX_HEAD = 65_536
"""Bytes of a message besides the arguments."""
_TYPES = [str, str, int, str, str, int, int, int, list, list]


def dumps(job: "Claimed") -> str:
    """A JSON list, assembled as text: the arguments are already JSON and need no parsing."""
    return (
        f'["{job.batch_id.hex}","{job.id.hex}",{1 if job.event else 0},"{job.event}","{job.func}",'
        f"{job.timeout},{job.attempts},{job.max_attempts},{job.no_retry},{job.arguments}]"
    )


@dataclass(slots=True)
class Message:
    """The call, and the job and batch that its outcome belongs to."""

    batch_id: UUID
    job_id: UUID
    is_callback: bool
    event: str
    func: str
    timeout: int
    """Seconds."""
    attempts: int
    max_attempts: int
    no_retry: list[str]
    args: list[Any] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    dispatch: int

    @classmethod
    def loads(cls, rq_id: str, text: str | bytes) -> "Message":
        """Raises `ValueError` if the text is not a message."""
        if len(text) > LARGEST_PAYLOAD + MAX_HEAD:
            raise ValueError(f"{len(text):,} bytes are more than any MAX_PAYLOAD allows")
        values = json.loads(text)
        if not isinstance(values, list) or [type(value) for value in values] != _TYPES:
            raise ValueError("it is not a list as the coordinator writes it")
        batch, job, callback, event, func, timeout, attempts, max_attempts, no_retry, (args, kwargs) = values
        if not (type(args) is list and type(kwargs) is dict and 1 <= timeout < 2**31):
            raise ValueError("its arguments or its timeout are invalid")
        return cls(
            UUID(batch), UUID(job), bool(callback), event, func, timeout, attempts, max_attempts, no_retry,
            args, kwargs, int(rq_id.rpartition("-")[2]),
        )  # fmt: skip

    def outcome(self, kind: Kind, **fields: Any) -> Outcome:
        return Outcome(kind, self.job_id, self.dispatch, self.batch_id, not self.is_callback, **fields)

    def vanished(self, reason: VanishReason, detail: object = "", **fields: Any) -> Outcome:
        """The outcome if the job is not started."""
        return self.outcome(Kind.VANISHED, **vanished(reason, detail), **fields)
