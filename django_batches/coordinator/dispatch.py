"""Due rows to RQ: how many, from which queue, and onto it.

A queue holds less than a second of work, so that a new batch starts within a second behind a huge one, and Redis stays
small whatever the size of a batch.
"""

import time
from collections import deque
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
"""Jobs per worker that a queue holds at least."""
SECONDS_OF_WORK = 0.8
"""That a queue holds. A new batch waits until half of it is left, and then behind that half."""
HORIZON = 1.0
"""Seconds for which it counts how fast a queue was."""
RECOUNT = 0.5
"""Seconds between two counts of the jobs in a queue that are not ours."""
FAR = 1_000
"""How far such a count looks from both ends of a queue."""
SHORTEST = 0.005
"""Seconds below which a rate would be a guess."""
MAX_CLAIM = 1_000
LARGEST = 32 << 20
"""Characters of messages in one push."""
CALLBACKS = 200


@dataclass
class Flow:
    """How fast a queue is worked off."""

    length: int = 0
    since: float = 0.0
    """The moment of `length`: the last change of it, or the last look at an empty queue."""
    taken: deque[tuple[float, float, int]] = field(default_factory=deque)
    """How many were taken: (until, in how many seconds, count)."""
    others: int = 0
    """Of `length` those that are not ours: ordinary RQ jobs, and jobs of other projects."""
    counted_at: float = -RECOUNT
    frontier: Frontier = field(default_factory=Frontier)

    def look(self, length: int, now: float) -> None:
        """Notes how many were taken since the last look or push."""
        while self.taken and self.taken[0][0] < now - HORIZON:
            self.taken.popleft()
        count, seconds = self.length - length, now - self.since
        if not length and self.taken:
            # It has run dry, nobody knows when: maybe long ago, where nothing was due meanwhile.
            seconds = min(seconds, count * self._seconds() / self._count())
        if count > 0 and seconds < HORIZON:
            self.taken.append((now, seconds, count))
        if self.length != length or not length:
            self.since = now
        self.length = length

    def pushed(self, count: int, now: float) -> None:
        """Notes that jobs were added."""
        self.length, self.since = self.length + count, now

    def forget(self) -> None:
        """As at first; the next look notes nothing but the length."""
        self.taken.clear()
        self.length = 0

    def rate(self, workers: int) -> float:
        """Jobs that are ended per second while there are any; those that the workers have just taken only begin."""
        return max(0, self._count() - workers) / max(self._seconds(), SHORTEST)

    def _seconds(self) -> float:
        return sum(seconds for _, seconds, _ in self.taken)

    def _count(self) -> int:
        return sum(count for _, _, count in self.taken)

    def room(self, workers: int) -> int:
        """How many jobs to add; 0 while it is more than half full, so that claims are few and large."""
        target = max(FLOOR * max(1, workers), int(SECONDS_OF_WORK * self.rate(workers)))
        # Ours alone: a queue that is never empty of ordinary jobs would never get one of a batch.
        own = max(0, self.length - self.others)
        if own * 2 > min(target, claiming.WINDOW):
            return 0
        return min(target - own, MAX_CLAIM)


class Dispatcher:
    """Claims and pushes."""

    def __init__(self, redis: Redis, lease: Lease) -> None:
        self._redis = redis
        self._lease = lease
        self._scripts = Scripts(redis)
        self._flows: dict[str, Flow] = {}

    def dispatch_callbacks(self) -> int:
        """All due callbacks, to the front of their queues."""
        total = 0
        while claimed := claiming.claim_callbacks(CALLBACKS, self._lease):
            self.push_callbacks(claimed)
            total += len(claimed)
            if len(claimed) < CALLBACKS:
                break
        return total

    def push_callbacks(self, claimed: list[Claimed]) -> None:
        """To the front of their queues."""
        for queue in dict.fromkeys(job.queue for job in claimed):
            self._push(queue, [job for job in claimed if job.queue == queue], front=True)

    def dispatch_jobs(self) -> int:
        """As many jobs as the queues have room for, of those that are known to wait; see `look_everywhere`."""
        queues = [queue for queue, flow in self._flows.items() if not flow.frontier.is_reached]
        if not queues:
            return 0
        return sum(self._fill(queue, room) for queue, room in self._rooms(queues).items() if room)

    def look_everywhere(self) -> None:
        """The next dispatch looks at all queues from the start."""
        for flow in self._flows.values():
            flow.frontier.is_reached = True
        for queue in frontier.queues():
            self._flow(queue).frontier.restart()

    def forget_rates(self) -> None:
        """Jobs were handed back without being run: how fast that went says nothing of how fast jobs are run."""
        for flow in self._flows.values():
            flow.forget()

    def include(self, places: Iterable[Place]) -> None:
        """Jobs wait from these places on."""
        for batch_id, position, queue in places:
            for name in list(self._flows) if queue is None else [queue]:
                self._flow(name).frontier.include(batch_id, position)

    def _flow(self, queue: str) -> Flow:
        return self._flows.setdefault(queue, Flow())

    def _rooms(self, queues: list[str]) -> dict[str, int]:
        keys = self._scripts.keys
        pipeline = self._redis.pipeline(transaction=False)
        for queue in queues:
            pipeline.llen(keys.queue(queue))
            pipeline.scard(keys.workers_of(queue))
        found = pipeline.execute()
        now = time.monotonic()
        rooms = {}
        for index, queue in enumerate(queues):
            flow = self._flow(queue)
            length, workers = found[2 * index], found[2 * index + 1]
            flow.look(length, now)
            if now > flow.counted_at + RECOUNT and (flow.others or not flow.room(workers)):
                flow.others, flow.counted_at = self._others_in(queue, length), now
            rooms[queue] = flow.room(workers)
        return rooms

    def _others_in(self, queue: str, length: int) -> int:
        """How many of the jobs in a queue are not ours; in the middle of a long one all of them, by this count."""
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
            # A CHECK refuses counters that differ from their rows: no batch of the queue would move any more.
            asked = flow.frontier.look(queue)
            repaired = [key for key in asked if repairing.repair_counters(key, skip_locked=True)]
            if not repaired:
                raise
            return 0
        self._push(queue, claimed)
        flow.pushed(len(claimed), time.monotonic())
        return len(claimed)

    def _push(self, queue: str, claimed: list[Claimed], *, front: bool = False) -> None:
        jobs = [
            Pushed(
                self._scripts.keys.rq_id(job.id, job.dispatch),
                dumps(job),
                f"{job.batch_id.hex}{1 if job.event else 0}",
                job.timeout,
                job.func,
            )
            for job in claimed
        ]
        parts = _parts(jobs)
        for part in reversed(parts) if front else parts:
            if not self._scripts.push(self._lease.token, queue, part, front=front):
                raise LeaseLost("A newer coordinator has pushed to Redis.")


def _parts(jobs: list[Pushed]) -> list[list[Pushed]]:
    """So many at a time that Redis takes them: it ends a connection that sends it a gigabyte at once."""
    parts: list[list[Pushed]] = []
    size = LARGEST
    for job in jobs:
        size += len(job.message)
        if size > LARGEST:
            parts.append([])
            size = len(job.message)
        parts[-1].append(job)
    return parts
