"""The books against Redis: finds jobs that are in flight by their row but nowhere in Redis, or without a lease.

A look proves nothing while outcomes wait in the stream: a finished job has left Redis, and its outcome may not be
applied yet. The finish script adds the outcome and removes the job in one step; so the stream's last id is noted after
the look, and a verdict counts once everything up to that id has been applied. It names the dispatch, so that it cannot
touch a later run.
"""

import time
import zlib
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

from redis import Redis

from ..calls.arguments import clean_name
from ..transitions import applying, claiming
from ..transitions.frontier import Place
from ..transport.client import Keys, known_queues
from ..transport.outcomes import Kind, Outcome, fingerprint, rq_time
from .lease import Lease
from .record import Recorder, follow_up
from .suspects import Suspects

PAGE = 1_000
SECOND_LOOK = 12.0
"""Seconds that a job must be without a trace before it counts as lost: a plain RQ worker may have popped it and not
started it yet, and after a wipe the supervisor writes the leases of running jobs anew every 10 s."""


@dataclass(frozen=True)
class InFlight:
    """A row that is in RQ by the books."""

    job_id: UUID
    dispatch: int
    batch_id: UUID
    queue: str
    status: str
    is_callback: bool


class Reconciler:
    """Looks, waits until the stream is applied, then acts."""

    def __init__(self, redis: Redis, lease: Lease, recorder: Recorder, suspects: Suspects | None = None) -> None:
        self._redis = redis
        self._lease = lease
        self._recorder = recorder
        self._keys = Keys()
        self._verdicts: list[tuple[Outcome, str]] = []
        self._noted = b""
        self.requeued: list[Place] = []
        """Where jobs wait again that the last acts have given up."""
        self._suspects = suspects or Suspects()

    def look(self) -> int:
        """Compares all rows in flight with Redis; returns how many verdicts wait for the stream."""
        self._verdicts = []
        suspects: dict[str, float] = {}
        for page in self._pages():
            self._verdicts += self._judge(page, suspects)
        self._suspects.since = suspects
        self._noted = self._recorder.last_id()
        return len(self._verdicts)

    @property
    def verdicts(self) -> list[Outcome]:
        """What the last look found, to be recorded once the stream is applied."""
        return [outcome for outcome, _queue in self._verdicts]

    @property
    def has_suspects(self) -> bool:
        """Whether a second look is worth while before the next regular one."""
        return bool(self._suspects.since)

    @property
    def suspects(self) -> int:
        """How many jobs had no trace in the last look."""
        return len(self._suspects.since)

    def act(self) -> int:
        """Applies the verdicts of the last look once the stream is applied up to it; returns how many.

        A batch that somebody holds locked, so that its outcomes must wait, delays its own verdicts only.
        """
        behind = self._recorder.unapplied(self._noted) if self._verdicts else None
        if behind is None:
            return 0
        verdicts = [verdict for verdict in self._verdicts if verdict[0].batch_id not in behind]
        self._verdicts = [verdict for verdict in self._verdicts if verdict[0].batch_id in behind]
        for start in range(0, len(verdicts), PAGE):
            part = verdicts[start : start + PAGE]
            recorded = applying.record([outcome for outcome, _ in part], self._lease)
            follow_up(recorded)
            self.requeued += recorded.put_back
            self._recorder.count(recorded.done)
            done = {outcome.execution for outcome in recorded.done}
            self._forget([(*outcome.execution, queue) for outcome, queue in part if outcome.execution in done])
        return len(verdicts)

    def sweep(self) -> int:
        """Removes what RQ would keep for ever of runs that have ended; returns how many.

        A cancel on a page that comes with the end of the job writes its hash anew; a server that was rolled back has
        the leases of workers that are gone.
        """
        total, now = 0, self._redis.time()[0]
        for queue in known_queues(self._redis):
            over: Any = self._redis.zrangebyscore(self._keys.started(queue), "-inf", now, start=0, num=PAGE)
            kept = [execution.partition(b":")[0] for execution in over]
            for registry in ("canceled", "failed"):
                mine = self._redis.zscan_iter(f"{self._keys.RQ}:{registry}:{queue}", f"{self._keys.rq_ids}*", PAGE)
                kept += [key for key, _ in islice(mine, PAGE)]
            names = [key.decode(errors="replace") for key in kept]
            runs = {self._keys.parse(rq_id) for rq_id in names if self._keys.is_own(rq_id)}
            if runs:
                ended = runs - claiming.still_in_flight(job_id for job_id, _ in runs)
                self._forget([(*run, queue) for run in ended])
                total += len(ended)
        return total

    def mark_running(self) -> int:
        """Marks the rows of jobs that hold a lease and are `queued` by the books."""
        seen: list[tuple[UUID, int, datetime, str]] = []
        for page in self._pages():
            queued = [row for row in page if row.status == "queued"]
            pipeline = self._redis.pipeline(transaction=False)
            for row in queued:
                pipeline.hmget(self._keys.job(self._rq_id(row)), "status", "started_at", "worker_name")
            for row, (status, started, worker) in zip(queued, pipeline.execute(), strict=True):
                if status == b"started" and started and (began := rq_time(started.decode(errors="replace"))):
                    seen.append((row.job_id, row.dispatch, began, clean_name((worker or b"").decode())))
        return sum(
            claiming.mark_running(seen[start : start + PAGE], self._lease) for start in range(0, len(seen), PAGE)
        )

    def _pages(self) -> Iterator[list[InFlight]]:
        after: UUID | None = None
        while True:
            page = [InFlight(*row) for row in claiming.in_flight(after, PAGE)]
            if page:
                yield page
            if len(page) < PAGE:
                return
            after = page[-1].job_id

    def _judge(self, page: list[InFlight], suspects: dict[str, float]) -> list[tuple[Outcome, str]]:
        # The lists before the hashes: a job taken between the two looks is seen as started.
        waiting = self._waiting({row.queue for row in page})
        rows = [row for row in page if self._rq_id(row) not in waiting]
        pipeline = self._redis.pipeline(transaction=False)
        for row in rows:
            pipeline.hmget(self._keys.job(self._rq_id(row)), "status", "started_at")
            pipeline.zrange(self._keys.executions(self._rq_id(row)), 0, -1)
            pipeline.exists(self._keys.execution(self._rq_id(row), row.dispatch))
        found = pipeline.execute()
        verdicts = []
        for index, row in enumerate(rows):
            (status, started), executions, has_lease = found[3 * index : 3 * index + 3]
            kind = self._verdict(row, status, executions, bool(has_lease), suspects)
            if kind:
                outcome = _outcome(row, *kind)
                if started and outcome.kind != Kind.VANISHED:
                    outcome.started_at = rq_time(started.decode(errors="replace"))
                verdicts.append((outcome, row.queue))
        return verdicts

    def _verdict(
        self, row: InFlight, status: bytes | None, executions: list[bytes], has_lease: bool, suspects: dict[str, float]
    ) -> tuple[Kind, str] | None:
        rq_id = self._rq_id(row)
        if has_lease:
            return None
        if any(self._redis.exists(self._keys.execution(rq_id, execution.decode())) for execution in executions):
            return None  # of a plain RQ worker
        if status in (None, b"queued", b"started"):
            suspects[rq_id] = self._suspects.since.get(rq_id, time.monotonic())
            if time.monotonic() - suspects[rq_id] < SECOND_LOOK:
                return None
            return _LOST[status]
        if status == b"stopped":
            return Kind.STOPPED, "It was stopped on request."
        if status == b"canceled":
            return Kind.CANCELLED, "It was cancelled in RQ."
        if status == b"failed":
            return self._failed_in_rq(row)
        return Kind.VANISHED, f"RQ has it as {status.decode(errors='replace')}, and its outcome never came."

    def _failed_in_rq(self, row: InFlight) -> tuple[Kind, str]:
        """run() never raises, so a plain RQ worker has failed it from outside: killed, or abandoned with its host."""
        found: Any = self._redis.xrevrange(f"{self._keys.RQ}:results:{self._rq_id(row)}", count=1)
        packed = found[0][1].get(b"exc_string", b"") if found else b""
        if b"AbandonedJobError" in _unpacked(packed):
            return Kind.INTERRUPTED, "Its worker was lost while it ran."
        return Kind.KILLED, "WorkerKilled: its work horse died while it ran."

    def _waiting(self, queues: set[str]) -> set[str]:
        pipeline = self._redis.pipeline(transaction=False)
        for queue in sorted(queues):
            pipeline.lrange(self._keys.queue(queue), 0, -1)
        return {rq_id.decode() for ids in pipeline.execute() for rq_id in ids}

    def _forget(self, runs: list[tuple[UUID, int, str]]) -> None:
        """Removes what is left in Redis of (job, dispatch, queue), so that nobody starts them any more."""
        pipeline = self._redis.pipeline(transaction=False)
        for job_id, dispatch, queue in runs:
            rq_id = self._keys.rq_id(job_id, dispatch)
            pipeline.delete(self._keys.job(rq_id), self._keys.executions(rq_id), f"{self._keys.RQ}:results:{rq_id}")
            pipeline.lrem(self._keys.queue(queue), 0, rq_id)
            pipeline.lrem(f"{self._keys.queue(queue)}:intermediate", 0, rq_id)
            pipeline.zrem(self._keys.started(queue), f"{rq_id}:{dispatch}")
            for registry in ("failed", "canceled", "finished"):
                pipeline.zrem(f"{self._keys.RQ}:{registry}:{queue}", rq_id)
        pipeline.execute()

    def _rq_id(self, row: InFlight) -> str:
        return self._keys.rq_id(row.job_id, row.dispatch)


_LOST = {
    None: (Kind.VANISHED, "It was gone from Redis."),
    b"queued": (Kind.VANISHED, "It was taken from its queue and never started."),
    b"started": (Kind.INTERRUPTED, "Its worker was lost while it ran."),
}


def _outcome(row: InFlight, kind: Kind, error: str) -> Outcome:
    return Outcome(
        kind,
        row.job_id,
        row.dispatch,
        row.batch_id,
        not row.is_callback,
        error_type=f"django_batches.{kind}",
        error=error,
        fingerprint=fingerprint(kind, ""),
    )


def _unpacked(text: bytes) -> bytes:
    try:
        return zlib.decompress(b64decode(text)) if text else b""
    except ValueError:
        return b""
    except zlib.error:
        return b""
