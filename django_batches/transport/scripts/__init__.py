"""The scripts that run inside Redis: what must not be seen half done, in one call each.

They keep RQ 3's own keys as RQ's worker would leave them, so that `rq info`, stop-job, suspend and the pages of
django-rq tell the truth. Each may be sent twice (redis-py repeats a call whose answer was lost) without harm.
They build names of keys, so Redis Cluster is out of reach, as it is for RQ.
"""

import time
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha1
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from redis import Redis
from redis.exceptions import NoScriptError
from rq.serializers import resolve_serializer

from ...conf import settings
from ..client import Keys
from ..outcomes import Kind, Outcome, fingerprint

_FOLDER = Path(__file__).parent
_PRELUDE = (_FOLDER / "prelude.lua").read_text()

RUN = "django_batches.execution.run"
"""What RQ calls for every job of ours."""


class Pushed(NamedTuple):
    """A job as it goes to RQ, in the order of the script."""

    rq_id: str
    message: str
    """JSON text: batch, job, whether it is a callback, event, function, timeout, attempts, max_attempts, no_retry,
    arguments."""
    owner: str
    """The batch, and 1 for a callback or 0."""
    timeout: int
    description: str

    def __repr__(self) -> str:
        return f"Pushed({self.rq_id})"  # without the arguments: a log must not have them


class Taken(NamedTuple):
    """What a turn gave an executor."""

    kind: str
    """job, rq, idle, suspended or retired."""
    rq_id: str = ""
    queue: str = ""
    message: bytes = b""
    pushed_at: float = 0.0
    """By Redis' clock."""
    now: float = 0.0
    """By Redis' clock."""

    def __repr__(self) -> str:
        return f"Taken({self.kind} {self.rq_id})"


class _Direct:
    """A script on a connection of its own, for the one call that every job pays for.

    redis-py's client (pool, retries, metrics) costs more than the call itself. A broken connection is given back and
    its error raised: the caller repeats the call, which the script allows, and the pool connects anew, behind Sentinel
    to the primary of that moment.
    """

    def __init__(self, redis: Redis, text: str) -> None:
        self._pool = redis.connection_pool
        self._text = text
        self._sha = sha1(text.encode()).hexdigest()
        self._connection: Any = None

    def __call__(self, args: Sequence[Any]) -> Any:
        if self._connection is None:
            self._connection = self._pool.get_connection()
        try:
            return self._send("EVALSHA", self._sha, 0, *args)
        except NoScriptError:
            return self._send("EVAL", self._text, 0, *args)

    def _send(self, *command: Any) -> Any:
        try:
            self._connection.send_command(*command)
            return self._connection.read_response()
        except NoScriptError:
            raise
        except BaseException:
            # The answer may still come, and would be taken for that of the next call. Or the server is a replica by
            # now, and behind its address another one is the primary.
            broken, self._connection = self._connection, None
            broken.disconnect()
            self._pool.release(broken)
            raise


class Scripts:
    """The scripts, bound to a client."""

    def __init__(self, redis: Redis, keys: Keys | None = None) -> None:
        self.keys = keys or Keys()
        self._common = [self.keys.RQ, self.keys.own, self.keys.rq_ids]
        self._push, self._renew, self._bury, self._withdraw = (
            redis.register_script(_text(name)) for name in ("push", "renew", "bury", "withdraw")
        )
        self._turn = _Direct(redis, _text("turn"))

    def push(self, token: int, queue: str, jobs: Sequence[Pushed], *, front: bool = False) -> bool:
        """Puts jobs into a queue; False where a newer coordinator has taken over."""
        per_job: Any = chain.from_iterable(jobs)
        head: list[Any] = [token, queue, "1" if front else "0", stamp(), _data(), uuid4().hex]
        return int(self._push(args=[*self._common, *head, *per_job])) >= 0

    def turn(
        self,
        worker: str,
        queues: Sequence[str],
        *,
        take: bool = True,
        finished: str = "",
        outcome: Outcome | None = None,
        queue: str = "",
        seconds: float = 0.0,
    ) -> Taken:
        """Finishes the last job and takes the next; `seconds` are added to the executor's working time."""
        succeeded = outcome is not None and outcome.kind == Kind.SUCCEEDED
        reply = self._turn(
            args=[
                *self._common,
                worker,
                stamp(),
                "1" if take else "0",
                finished,
                outcome.dumps() if outcome else "",
                queue,
                "successful" if succeeded else "failed",
                f"{seconds:.6f}" if seconds else "0",
                *queues,
            ]
        )
        kind = reply[0].decode()
        if kind == "job":
            _, rq_id, message, pushed_at, taken_from, time = reply
            return Taken(kind, rq_id.decode(), taken_from.decode(), message, float(pushed_at or 0), float(time))
        if kind == "rq":
            return Taken(kind, reply[1].decode(), reply[2].decode())
        return Taken(kind)

    def renew(self, executors: Iterable[tuple[str, str, str]]) -> None:
        """Renews the leases of (worker, job id or '', queue)."""
        flat = [value for executor in executors for value in executor]
        if flat:
            self._renew(args=[*self._common, stamp(), *flat])

    def bury(self, worker: str, kind: Kind, error: str, *, stopped: str = "") -> str | None:
        """Retires a dead executor; the outcome of the job it held is `kind`. The job's id, or None.

        With `stopped` (the id of a job that was to be stopped) another occupant is innocent and runs again.
        """
        name = {Kind.TIMEOUT: "JobTimeoutException", Kind.STOPPED: "JobStopped"}.get(kind, "WorkerKilled")
        buried = self._bury(
            args=[
                *self._common,
                worker,
                stopped,
                kind.value,
                Kind.VANISHED.value,
                name,
                f"{name}: {error}",
                fingerprint(name, ""),
                time.time(),
            ]
        )
        return buried.decode() if buried else None

    def withdraw(self, rq_id: str, queue: str) -> bool:
        """Takes a job out of its queue where it has not been started."""
        return bool(self._withdraw(args=[*self._common, rq_id, queue]))


def _text(name: str) -> str:
    return _PRELUDE + (_FOLDER / f"{name}.lua").read_text()


def stamp() -> str:
    """The time as RQ's `utcformat` writes it, in a third of its time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def _data() -> bytes:
    """The constant that RQ reads as the call: nothing of a job's own is serialized by RQ's serializer."""
    serializer = settings().RQ_SERIALIZER
    if serializer not in _DATA:
        dumps = resolve_serializer(serializer).dumps
        _DATA[serializer] = zlib.compress(dumps((RUN, None, (), {})))
    return _DATA[serializer]


_DATA: dict[str, bytes] = {}
