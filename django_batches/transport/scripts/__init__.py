"""The Lua scripts. Each makes, in one call, a change in Redis that must be atomic.

They write RQ 3's own keys as RQ's worker does, so that `rq info`, stop-job, suspend and django-rq work as usual.
Each can safely run twice, because a call whose reply was lost is repeated. They compute key names from their arguments,
so they do not run on Redis Cluster; neither does RQ.
"""

import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from hashlib import sha1
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from django.utils import timezone
from redis import Redis
from redis.exceptions import NoScriptError
from rq.serializers import resolve_serializer

from ...conf import settings
from ..client import Keys
from ..outcomes import Kind, Outcome, fingerprint, vanished
from ..vanished import VanishReason

_PLACEHOLDER = UUID(int=0)
_FOLDER = Path(__file__).parent
_PRELUDE = (_FOLDER / "prelude.lua").read_text()

RUN = "django_batches.execution.run"
"""The function that RQ calls for each batch job."""


class Pushed(NamedTuple):
    """A job to push, in the order of the script's arguments."""

    rq_id: str
    message: str
    """JSON, see `transport.message`."""
    owner: str
    """The batch's id (32 hexadecimal digits), followed by 1 for a callback or 0 for a job."""
    timeout: int
    description: str

    def __repr__(self) -> str:
        return f"Pushed({self.rq_id})"  # without the arguments of the job, which must not be logged


class Taken(NamedTuple):
    """The reply to a turn."""

    kind: str
    """"job" (of a batch), "rq" (another RQ job), "idle", "suspended", or "retired" (the executor was reaped)."""
    rq_id: str = ""
    queue: str = ""
    message: bytes = b""
    pushed_at: float = 0.0
    now: float = 0.0
    """The time of the reply. `pushed_at` and `now` are in seconds, by Redis' clock."""

    def __repr__(self) -> str:
        return f"Taken({self.kind} {self.rq_id})"


class _FastScript:
    """A script on a connection of its own. With redis-py's, a job takes 1.33 times as long (benchmarks.fast_paths).

    It does not retry; its caller does. The call after an error takes a new connection from the pool, which, with
    Sentinel, leads to the current primary.
    """

    def __init__(self, redis: Redis, text: str) -> None:
        self._pool = redis.connection_pool
        self._text = text
        self._sha = sha1(text.encode()).hexdigest()
        self._connection: Any = None

    def __call__(self, args: Sequence[Any]) -> Any:
        connection = self._connection = self._connection or self._pool.get_connection()
        try:
            try:
                connection.send_command("EVALSHA", self._sha, 0, *args)
                return connection.read_response()
            except NoScriptError:
                connection.send_command("EVAL", self._text, 0, *args)
                return connection.read_response()
        except BaseException:
            # Drop the connection. The next call could mistake a late reply for its own, or the server may be a replica.
            self._connection = None
            connection.disconnect()
            self._pool.release(connection)
            raise


class Scripts:
    """The scripts as methods, bound to a client."""

    def __init__(self, redis: Redis) -> None:
        self.keys = Keys()
        self._prefixes = [self.keys.RQ, self.keys.own, self.keys.rq_ids]
        self._push, self._renew, self._reap, self._withdraw = (
            redis.register_script(_text(name)) for name in ("push", "renew", "reap", "withdraw")
        )
        self._turn = _FastScript(redis, _text("turn"))

    def push(self, token: int, queue: str, jobs: Sequence[Pushed], *, front: bool = False) -> bool:
        """Pushes jobs to a queue. Pushes nothing and returns False if a coordinator with a newer lease has pushed."""
        head: list[Any] = [token, queue, "1" if front else "0", stamp(), _data(settings().RQ_SERIALIZER), uuid4().hex]
        per_job: Any = chain.from_iterable(jobs)
        return int(self._push(args=[*self._prefixes, *head, *per_job])) >= 0

    def turn(
        self, worker: str, queues: Sequence[str], *, take: bool = True,
        finished: str = "", queue: str = "", outcome: Outcome | None = None, seconds: float = 0.0,
    ) -> Taken:  # fmt: skip
        """Finishes an executor's last job and takes its next one. Adds `seconds` to the executor's working time."""
        result = "successful" if outcome is not None and outcome.kind == Kind.SUCCEEDED else "failed"
        end = [finished, outcome.dumps() if outcome else "", queue, result, f"{seconds:.6f}" if seconds else "0"]
        reply = self._turn([*self._prefixes, worker, stamp(), "1" if take else "0", *end, *queues])
        kind = reply[0].decode()
        if kind == "job":
            _, rq_id, message, pushed_at, taken_from, now = reply
            return Taken(kind, rq_id.decode(), taken_from.decode(), message, float(pushed_at or 0), float(now))
        if kind == "rq":
            return Taken(kind, reply[1].decode(), reply[2].decode())
        return Taken(kind)

    def renew(self, executors: Iterable[tuple[str, str, str]]) -> None:
        """Renews the leases of running jobs, each given as a tuple (worker, RQ id of its job, queue)."""
        if flat := list(chain.from_iterable(executors)):
            self._renew(args=[*self._prefixes, stamp(), *flat])

    def reap(self, worker: str, kind: Kind, error: str, stopped: str = "") -> str | None:
        """Retires a dead executor and reports `kind` for the job that it was running. Returns the job's RQ id, or None.

        If `stopped` is given but the executor was running another job, reports that job as vanished: it runs again.
        """
        name = {Kind.TIMEOUT: "JobTimeoutException", Kind.STOPPED: "JobStopped"}.get(kind, "WorkerKilled")
        ended = {"error_type": name, "error": f"{name}: {error}", "fingerprint": fingerprint(name, "")}
        if kind is Kind.VANISHED:
            ended = vanished(VanishReason.PROCESS_ENDED)
        outcomes = (kind, ended), (Kind.VANISHED, vanished(VanishReason.OTHER_JOB_KILLED, error))
        # The script replaces the placeholders by the job and its batch.
        texts = [
            Outcome(kind, _PLACEHOLDER, 0, _PLACEHOLDER, worker=worker, finished_at=timezone.now(), **fields).dumps()
            for kind, fields in outcomes
        ]
        reaped = self._reap(args=[*self._prefixes, worker, stopped, *texts])
        return reaped.decode() if reaped else None

    def withdraw(self, rq_id: str, queue: str) -> bool:
        """Removes a job from its queue. Returns False if it has started."""
        return bool(self._withdraw(args=[*self._prefixes, rq_id, queue]))


def _text(name: str) -> str:
    return _PRELUDE + (_FOLDER / f"{name}.lua").read_text()


def stamp() -> str:
    """The time now in RQ's format. With RQ's `utcformat`, a job takes 1.03 times as long (benchmarks.fast_paths)."""
    return datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


@cache
def _data(serializer: str) -> bytes:
    """RQ's `data` of every job: the serialized call of `RUN`. RQ's serializer never sees a job's arguments."""
    return zlib.compress(resolve_serializer(serializer).dumps((RUN, None, (), {})))
