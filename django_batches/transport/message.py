"""What travels with a job through Redis: written by the coordinator, read where the job runs."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..conf import LARGEST_PAYLOAD
from .outcomes import Kind, Outcome

if TYPE_CHECKING:
    from ..transitions.claiming import Claimed

MAX_HEAD = 65_536
"""Bytes of a message that are not arguments."""
_TYPES = [str, str, int, str, str, int, int, int, list, list]
"""Of the items of the list that a message is."""


def dumps(job: "Claimed") -> str:
    """JSON put together as text: the arguments go on as they were written, without being parsed."""
    return (
        f'["{job.batch_id.hex}","{job.id.hex}",{1 if job.event else 0},"{job.event}","{job.func}",'
        f"{job.timeout},{job.attempts},{job.max_attempts},{job.no_retry},{job.arguments}]"
    )


@dataclass(slots=True)
class Message:
    """What travels with a job: the call, and where its outcome belongs."""

    batch_id: UUID
    job_id: UUID
    is_callback: bool
    event: str
    func: str
    timeout: int
    attempts: int
    max_attempts: int
    no_retry: list[str]
    args: list[Any] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    dispatch: int

    @classmethod
    def loads(cls, rq_id: str, text: str | bytes) -> "Message":
        """Raises `ValueError` for text that is no message of ours."""
        if len(text) > LARGEST_PAYLOAD + MAX_HEAD:
            raise ValueError(f"{len(text):,} bytes are more than any MAX_PAYLOAD allows")
        values = json.loads(text)
        if not isinstance(values, list) or [type(value) for value in values] != _TYPES:
            raise ValueError("it is not the list that the coordinator writes")
        batch, job, callback, event, func, timeout, attempts, max_attempts, no_retry, (args, kwargs) = values
        if not (type(args) is list and type(kwargs) is dict and 1 <= timeout < 2**31):
            raise ValueError("its arguments or its timeout are none")
        dispatch = int(rq_id.rpartition("-")[2])
        return cls(
            UUID(batch), UUID(job), bool(callback), event, func, timeout, attempts, max_attempts, no_retry,
            args, kwargs, dispatch,
        )  # fmt: skip

    def outcome(self, kind: Kind, **fields: Any) -> Outcome:
        return Outcome(kind, self.job_id, self.dispatch, self.batch_id, not self.is_callback, **fields)
