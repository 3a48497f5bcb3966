"""Due rows to RQ: how many, from which queue, and onto it.

A queue holds less than a second of work, so that a new batch starts within a second behind a huge one, and Redis stays
small whatever the size of a batch.
"""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from django.db import IntegrityError
from redis import Redis

from ..scripts import Pushed, Scripts
from ..transitions import dispatching, due, repairing
from ..transitions.dispatching import Claimed
from ..transitions.due import Frontier, Place
from .lease import Lease, LeaseLost

FLOOR = 4
"""Jobs per worker that a queue holds at least."""
SECONDS_OF_WORK = 0.8
"""That a queue holds. A new batch waits until half of it is left, and then behind that half."""
HORIZON = 1.0
"""Seconds for which it counts how fast a queue was."""
SHORTEST = 0.005
"""Seconds below which a rate would be a guess."""
MAX_CLAIM = 1_000
CALLBACKS = 200


@dataclass
class Flow:
    """How fast a queue is worked off."""

    length: int = 0
    since: float = 0.0
    """The moment of `length`: the last change of it, or the last look at an empty queue."""
    taken: deque[tuple[float, float, int]] = field(default_factory=deque)
    """How many were taken: (until, in how many seconds, count)."""
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
        if self.length * 2 > min(target, dispatching.WINDOW):
            return 0
        return min(target - self.length, MAX_CLAIM)


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
        while claimed := dispatching.claim_callbacks(CALLBACKS, self._lease):
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
        for queue in due.queues():
            self._flow(queue).frontier.restart()

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
            flow.look(found[2 * index], now)
            rooms[queue] = flow.room(found[2 * index + 1])
        return rooms

    def _fill(self, queue: str, room: int) -> int:
        flow = self._flows[queue]
        try:
            claimed = dispatching.claim_jobs(queue, room, self._lease, flow.frontier)
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
                message_of(job),
                f"{job.batch_id.hex}{1 if job.event else 0}",
                job.timeout,
                job.func,
            )
            for job in claimed
        ]
        if jobs and not self._scripts.push(self._lease.token, queue, jobs, front=front):
            raise LeaseLost("A newer coordinator has pushed to Redis.")


def message_of(job: Claimed) -> str:
    """JSON put together as text: the arguments go on as they were written, without being parsed."""
    return (
        f'["{job.batch_id.hex}","{job.id.hex}",{1 if job.event else 0},"{job.event}","{job.func}",'
        f"{job.timeout},{job.attempts},{job.max_attempts},{job.no_retry},{job.arguments}]"
    )
