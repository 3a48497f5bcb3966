"""Dispatches due jobs: how many, from which queue, and the push to Redis.

A queue contains less than a second of work, so that a new batch starts within a second behind a huge one, and Redis
stays small whatever the size of a batch.
"""

import time
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from django.db import IntegrityError
from redis import Redis

from ..transitions import claiming, frontier, repairing
from ..transitions.claiming import Claimed
from ..transitions.frontier import Frontier, Place
from ..transport.message import dumps
from ..transport.scripts import Pushed, Scripts
from .lease import Lease, LeaseLost

FLOOR = 4
"""Jobs per worker that a queue gets at least."""
SECONDS_OF_WORK = 0.8
"""The target length of a queue. A new batch waits until half of it is left, and then behind that half."""
HORIZON = 1.0
"""Seconds over which the rate of a queue is measured."""
RECOUNT = 0.5
"""Seconds between two counts of the other jobs in a queue."""
FAR = 1_000
"""Jobs that such a count reads from each end of a queue."""
SHORTEST = 0.005
"""Seconds: a rate over less is a guess."""
MAX_CLAIM = 1_000
LARGEST = 32 << 20
"""Characters of messages in one push."""
CALLBACKS = 200  # in one claim


@dataclass
class Flow:
    """The length of a queue and how fast workers take its jobs."""

    length: int = 0
    since: float = 0.0
    """Time of the last change of `length`, or of the last look if it is 0."""
    taken: deque[tuple[float, float, int]] = field(default_factory=deque)
    """Jobs that were taken within the horizon: (end, seconds, count)."""
    others: int = 0
    """Jobs in the queue that are not of our batches: RQ jobs, and jobs of other projects."""
    counted_at: float = -RECOUNT
    frontier: Frontier = field(default_factory=Frontier)

    def look(self, length: int, now: float) -> None:
        """Measures how many jobs were taken since the last look or push."""
        while self.taken and self.taken[0][0] < now - HORIZON:
            self.taken.popleft()
        count, seconds = self.length - length, now - self.since
        if not length and self.taken:
            # It became empty at an unknown time, maybe long ago, if nothing was due meanwhile.
            total, total_seconds = self._total()
            seconds = min(seconds, count * total_seconds / total)
        if count > 0 and seconds < HORIZON:
            self.taken.append((now, seconds, count))
        if self.length != length or not length:
            self.since = now
        self.length = length

    def pushed(self, count: int, now: float) -> None:
        self.length, self.since = self.length + count, now

    def room(self, workers: int) -> int:
        """How many jobs to add: 0 while the queue is more than half full, so that claims are few and large."""
        count, seconds = self._total()
        # Jobs that end per second; those that the workers have just taken have only started.
        rate = max(0, count - workers) / max(seconds, SHORTEST)
        target = max(FLOOR * max(1, workers), int(SECONDS_OF_WORK * rate))
        # Only ours: otherwise a queue that always has RQ jobs would never get a batch job.
        own = max(0, self.length - self.others)
        if own * 2 > min(target, claiming.WINDOW):
            return 0
        return min(target - own, MAX_CLAIM)

    def _total(self) -> tuple[int, float]:
        return sum(count for _, _, count in self.taken), sum(seconds for _, seconds, _ in self.taken)


class Dispatcher:
    def __init__(self, redis: Redis, lease: Lease) -> None:
        self._redis, self._lease, self._scripts = redis, lease, Scripts(redis)
        self._flows: defaultdict[str, Flow] = defaultdict(Flow)

    def dispatch_callbacks(self) -> int:
        total = 0
        while claimed := claiming.claim_callbacks(CALLBACKS, self._lease):
            self.push_callbacks(claimed)
            total += len(claimed)
            if len(claimed) < CALLBACKS:
                break
        return total

    def push_callbacks(self, claimed: list[Claimed]) -> None:
        for queue in dict.fromkeys(job.queue for job in claimed):
            self._push(queue, [job for job in claimed if job.queue == queue], front=True)

    def dispatch_jobs(self) -> int:
        """Dispatches as many of the jobs known to wait as the queues have room for; returns how many."""
        queues = [queue for queue, flow in self._flows.items() if not flow.frontier.is_reached]
        rooms = self._rooms(queues) if queues else {}
        return sum(self._fill(queue, room) for queue, room in rooms.items() if room)

    def look_everywhere(self) -> None:
        for flow in self._flows.values():
            flow.frontier.is_reached = True
        for queue in frontier.queues():
            self._flows[queue].frontier.restart()

    def forget_rates(self) -> None:
        """For jobs that were returned without running: that is faster than workers run jobs."""
        for flow in self._flows.values():
            flow.taken.clear()
            flow.length = 0  # so that the next look only sets it

    def include(self, places: Iterable[Place]) -> None:
        for batch_id, position, queue in places:
            for name in list(self._flows) if queue is None else [queue]:
                self._flows[name].frontier.include(batch_id, position)

    def _rooms(self, queues: list[str]) -> dict[str, int]:
        keys = self._scripts.keys
        pipeline = self._redis.pipeline(transaction=False)
        for queue in queues:
            pipeline.llen(keys.queue(queue))
            pipeline.scard(keys.workers_of(queue))
        found = pipeline.execute()
        now = time.monotonic()
        rooms = {}
        for queue, length, workers in zip(queues, found[::2], found[1::2], strict=True):
            flow = self._flows[queue]
            flow.look(length, now)
            if now > flow.counted_at + RECOUNT and (flow.others or not flow.room(workers)):
                flow.others, flow.counted_at = self._others_in(queue, length), now
            rooms[queue] = flow.room(workers)
        return rooms

    def _others_in(self, queue: str, length: int) -> int:
        """How many jobs in a queue are not ours. Counts all in the middle of a long queue, which it does not read."""
        key, prefix = self._scripts.keys.queue(queue), self._scripts.keys.rq_ids.encode()
        ids = cast("list[bytes]", self._redis.lrange(key, 0, FAR - 1))
        if length > FAR:
            ids += cast("list[bytes]", self._redis.lrange(key, -min(FAR, length - FAR), -1))
        return max(0, length - sum(job_id.startswith(prefix) for job_id in ids))

    def _fill(self, queue: str, room: int) -> int:
        flow = self._flows[queue]
        try:
            claimed = claiming.claim_jobs(queue, room, self._lease, flow.frontier)
        except IntegrityError:
            # A CHECK refuses counters that differ from their rows, and would block all batches of the queue.
            batches = flow.frontier.find_batches(queue)
            if not [key for key in batches if repairing.repair_counters(key, skip_locked=True)]:
                raise
            return 0
        self._push(queue, claimed)
        flow.pushed(len(claimed), time.monotonic())
        return len(claimed)

    def _push(self, queue: str, claimed: list[Claimed], *, front: bool = False) -> None:
        jobs = []
        for job in claimed:
            rq_id, owner = self._scripts.keys.rq_id(job.id, job.dispatch), f"{job.batch_id.hex}{1 if job.event else 0}"
            jobs.append(Pushed(rq_id, dumps(job), owner, job.timeout, job.func))
        parts = _parts(jobs)
        for part in reversed(parts) if front else parts:
            if not self._scripts.push(self._lease.token, queue, part, front=front):
                raise LeaseLost("A newer coordinator has pushed to Redis.")


def _parts(jobs: list[Pushed]) -> list[list[Pushed]]:
    """Splits a push by size: Redis closes a connection that sends a gigabyte at once."""
    parts: list[list[Pushed]] = []
    size = LARGEST
    for job in jobs:
        size += len(job.message)
        if size > LARGEST:
            parts.append([])
            size = len(job.message)
        parts[-1].append(job)
    return parts
