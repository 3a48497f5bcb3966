"""Compares rows and Redis: finds jobs that are in flight in the database but absent or without a lease in Redis.

A comparison proves nothing while outcomes wait in the stream: a finished job has left Redis, and its outcome may not be
applied yet. The turn script adds the outcome and removes the job in one step. So the reconciler notes the stream's last
id after the comparison, and applies a verdict once everything up to that id is applied. A verdict names the dispatch,
so that it cannot affect a later run.
"""

import time
import zlib
from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
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
from ..transport.outcomes import Kind, Outcome, own_error, rq_time, vanished
from ..transport.vanished import VanishReason
from .lease import Lease
from .record import Recorder
from .suspects import Suspects

PAGE = 1_000
SECOND_LOOK = 12.0
"""Seconds that a job must be absent before it counts as lost: a plain RQ worker may have popped it and not started it
yet, and after a wipe the supervisor rewrites the leases of running jobs every 10 s."""


@dataclass(frozen=True)
class InFlight:
    """A row whose job should be in RQ."""

    job_id: UUID
    dispatch: int
    batch_id: UUID
    queue: str
    status: str
    is_callback: bool

    def outcome(self, kind: Kind, **fields: Any) -> Outcome:
        return Outcome(kind, self.job_id, self.dispatch, self.batch_id, not self.is_callback, **fields)


class Reconciler:
    """Compares, waits until the stream is applied, then acts."""

    def __init__(self, redis: Redis, lease: Lease, recorder: Recorder, suspects: Suspects | None = None) -> None:
        self._redis, self._lease, self._recorder, self._keys = redis, lease, recorder, Keys()
        self.verdicts: list[tuple[Outcome, str]] = []
        """Outcome and queue of each lost job in the last comparison, to be applied after the stream."""
        self._noted = b""
        """The stream's last id after the last comparison."""
        self.suspects = suspects or Suspects()
        self.requeued: list[Place] = []
        """Where the jobs wait that became due again through the verdicts; the dispatcher takes them."""

    def look(self) -> int:
        """Compares all rows in flight with Redis; returns the number of verdicts."""
        self.verdicts = []
        suspects: dict[str, float] = {}
        for page in self._pages():
            self.verdicts += self._judge(page, suspects)
        self.suspects.since = suspects
        self._noted = self._recorder.last_id()
        return len(self.verdicts)

    def act(self) -> int:
        """Applies the verdicts if the stream is applied up to the comparison; returns how many.

        A batch whose outcomes are postponed, because it is locked, delays only its own verdicts.
        """
        behind = self._recorder.unapplied(self._noted) if self.verdicts else None
        if behind is None:
            return 0
        verdicts = [verdict for verdict in self.verdicts if verdict[0].batch_id not in behind]
        self.verdicts = [verdict for verdict in self.verdicts if verdict[0].batch_id in behind]
        for start in range(0, len(verdicts), PAGE):
            part = verdicts[start : start + PAGE]
            recorded = applying.record([outcome for outcome, _ in part], self._lease)
            self._recorder.follow_up(recorded)
            self.requeued += recorded.put_back
            done = {outcome.execution for outcome in recorded.done}
            self._remove([(*outcome.execution, queue) for outcome, queue in part if outcome.execution in done])
        return len(verdicts)

    def sweep(self) -> int:
        """Removes what RQ would keep forever of runs that have ended; returns how many.

        A cancel in RQ at the moment of the job's end rewrites its hash, and a server that was restored from an older
        dump has the leases of workers that are gone.
        """
        total, now = 0, self._redis.time()[0]
        for queue in known_queues(self._redis):
            expired: Any = self._redis.zrangebyscore(self._keys.started(queue), "-inf", now, start=0, num=PAGE)
            found = [execution.partition(b":")[0] for execution in expired]
            for registry in ("canceled", "failed"):
                ours = self._redis.zscan_iter(f"{self._keys.RQ}:{registry}:{queue}", f"{self._keys.rq_ids}*", PAGE)
                found += [key for key, _ in islice(ours, PAGE)]
            names = [key.decode(errors="replace") for key in found]
            runs = {self._keys.parse(rq_id) for rq_id in names if self._keys.is_own(rq_id)}
            if runs:
                ended = runs - claiming.still_in_flight(job_id for job_id, _ in runs)
                self._remove([(*run, queue) for run in ended])
                total += len(ended)
        return total

    def mark_running(self) -> int:
        """Marks the rows of `queued` jobs that have started in Redis; returns how many."""
        started: list[tuple[UUID, int, datetime, str]] = []
        for page in self._pages():
            queued = [row for row in page if row.status == "queued"]
            pipeline = self._redis.pipeline(transaction=False)
            for row in queued:
                pipeline.hmget(self._keys.job(self._rq_id(row)), "status", "started_at", "worker_name")
            for row, (status, moment, worker) in zip(queued, pipeline.execute(), strict=True):
                if status == b"started" and (started_at := rq_time(moment)):
                    started.append((row.job_id, row.dispatch, started_at, clean_name((worker or b"").decode())))
        chunks = (started[start : start + PAGE] for start in range(0, len(started), PAGE))
        return sum(claiming.mark_running(chunk, self._lease) for chunk in chunks)

    def _pages(self) -> Iterator[list[InFlight]]:
        after: UUID | None = None
        while page := [InFlight(*row) for row in claiming.in_flight(after, PAGE)]:
            yield page
            if len(page) < PAGE:
                return
            after = page[-1].job_id

    def _judge(self, page: list[InFlight], suspects: dict[str, float]) -> list[tuple[Outcome, str]]:
        # The lists before the hashes: a job taken between the two reads is seen as started.
        waiting = self._waiting({row.queue for row in page})
        rows = [(row, rq_id) for row in page if (rq_id := self._rq_id(row)) not in waiting]
        pipeline = self._redis.pipeline(transaction=False)
        for row, rq_id in rows:
            pipeline.hmget(self._keys.job(rq_id), "status", "started_at")
            pipeline.zrange(self._keys.executions(rq_id), 0, -1)
            pipeline.exists(self._keys.execution(rq_id, row.dispatch))
        found = pipeline.execute()
        verdicts = []
        for index, (row, rq_id) in enumerate(rows):
            (status, started), executions, has_lease = found[3 * index : 3 * index + 3]
            # A job without a lease of ours may still run in a plain RQ worker, which has an execution of its own.
            if has_lease or any(self._redis.exists(self._keys.execution(rq_id, key.decode())) for key in executions):
                continue
            if status in _SUSPICIOUS:
                suspects[rq_id] = self.suspects.since.get(rq_id, time.monotonic())
                if time.monotonic() - suspects[rq_id] < SECOND_LOOK:
                    continue
            outcome = self._outcome(row, status)
            if outcome.kind != Kind.VANISHED:
                outcome.started_at = rq_time(started)
            verdicts.append((outcome, row.queue))
        return verdicts

    def _outcome(self, row: InFlight, status: bytes | None) -> Outcome:
        """The outcome of a job without a lease, by its status in RQ."""
        if status == b"failed" and self._was_abandoned(row):
            status = b"started"
        if status in _ENDED:
            kind, error = _ENDED[status]
            return row.outcome(kind, **own_error(kind, error))
        if status in _NOT_STARTED:
            return row.outcome(Kind.VANISHED, **vanished(_NOT_STARTED[status]))
        name = (status or b"").decode(errors="replace")
        return row.outcome(Kind.VANISHED, **vanished(VanishReason.UNEXPECTED_STATUS, name))

    def _was_abandoned(self, row: InFlight) -> bool:
        """Whether RQ failed it because its host was lost. If not, its work horse was killed: `run` never raises."""
        results: Any = self._redis.xrevrange(f"{self._keys.RQ}:results:{self._rq_id(row)}", count=1)
        with suppress(IndexError, ValueError, zlib.error):
            return b"AbandonedJobError" in zlib.decompress(b64decode(results[0][1].get(b"exc_string", b"")))
        return False

    def _waiting(self, queues: set[str]) -> set[str]:
        pipeline = self._redis.pipeline(transaction=False)
        for queue in sorted(queues):
            pipeline.lrange(self._keys.queue(queue), 0, -1)
        return {rq_id.decode() for ids in pipeline.execute() for rq_id in ids}

    def _remove(self, runs: list[tuple[UUID, int, str]]) -> None:
        """Removes all traces of (job, dispatch, queue) from Redis, so that no worker starts them any more."""
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


_SUSPICIOUS = (None, b"queued", b"started")
"""Statuses of jobs that may be between two steps: they count as lost only after a second look."""

_ENDED = {
    b"started": (Kind.INTERRUPTED, "Its worker was lost while it ran."),
    b"stopped": (Kind.STOPPED, "It was stopped on request."),
    b"canceled": (Kind.CANCELLED, "It was cancelled in RQ."),
    b"failed": (Kind.KILLED, "WorkerKilled: its work horse died while it ran."),
}
_NOT_STARTED = {None: VanishReason.GONE, b"queued": VanishReason.TAKEN}
