"""Reads the outcome stream and applies it to the rows."""

import logging
import time
from collections import Counter
from typing import Any
from uuid import UUID

from redis import Redis

from .. import database
from ..transitions import applying, children
from ..transitions.frontier import Place
from ..transport.client import ANYTHING, JOBS, RECONCILE_NOW, Added, Keys
from ..transport.outcomes import Kind, Outcome
from ..transport.scripts import Scripts
from .lease import Lease

logger = logging.getLogger("django_batches")
jobs_logger = logging.getLogger("django_batches.jobs")

CHUNK = 1_000
"""Outcomes per transaction."""
FIRST = 200
"""Outcomes of the first read, whose size is unknown."""
LARGEST = 64 << 20
"""Bytes of outcomes that one read should return."""
LINGER = 0.1
"""Seconds to wait at most for more outcomes while they arrive fast: a transaction itself costs as much as a hundred."""
BULK = 200
"""Outcomes that are worth a transaction."""
FEW = 2
"""Up to so many outcomes are applied without waiting for more, and so are the next ones."""


class Recorder:
    """Reads the stream from its position, applies, commits, deletes. No consumer group: it is the only reader."""

    def __init__(self, redis: Redis, lease: Lease) -> None:
        # redis-py would convert each entry to a dict, and every job is an entry.
        redis.set_response_callback("XREAD", lambda response, **options: response)
        self._redis, self._lease, self._keys, self._scripts = redis, lease, Keys(), Scripts(redis)
        self._position: str | bytes = "0-0"
        self._last_wake_up: str | bytes = "$"
        self._last_idle: str | bytes = "0-0"
        self._count = FIRST
        self._read_at = self._linger_until = 0.0
        self._come_to = b"0-0"
        """Every outcome up to here was read, and applied unless it was postponed."""
        self.is_at_end = True
        self.postponed: set[UUID] = set()
        """Batches with outcomes that wait because the batch was locked, since the last rewind."""
        self._postponed_before: set[UUID] = set()
        self._has_reached_end = True  # since the last rewind
        self.reconcile_requested = False
        self.added: list[Place] = []
        """Where the jobs begin that the last read's wake-ups named."""
        self.counts: Counter[str] = Counter()
        """Outcomes by kind since the last `totals.add`."""

    def rewind(self) -> None:
        """Starts again at the beginning, for postponed outcomes or a stream that a Redis server restored."""
        self._position = "0-0"
        # If this pass has not reached the end, batches that the last pass postponed may still wait beyond.
        before = set() if self._has_reached_end else self._postponed_before
        self.postponed, self._postponed_before, self._has_reached_end = set(), self.postponed | before, False

    def linger(self) -> None:
        """Group commit: after a large transaction, lets more outcomes arrive until an executor becomes idle."""
        while (milliseconds := int((self._linger_until - time.monotonic()) * 1000)) > 0:
            found: Any = self._redis.xread({self._keys.idle: self._last_idle}, block=milliseconds)
            if found:
                self._last_idle = _entries(found, self._keys.idle)[-1][0]
                return

    def read(self, block: int) -> tuple[list[tuple[bytes, bytes]], set[bytes]]:
        """Waits up to `block` milliseconds. Returns outcomes as (entry, text), and the wake-ups besides `added`."""
        if self._last_wake_up == "$":
            self._last_wake_up = self._last_id(self._keys.wake_ups)
        streams: Any = {self._keys.outcomes: self._position, self._keys.wake_ups: self._last_wake_up}
        found: Any = self._redis.xread(streams, count=self._count, block=max(1, block))
        wake_ups = self._read_wake_ups(_entries(found, self._keys.wake_ups))
        outcomes = _entries(found, self._keys.outcomes)
        entries = [(entry, text if name == b"o" else b"") for entry, (name, text, *_) in outcomes]
        self.is_at_end = len(entries) < self._count
        self._has_reached_end |= self.is_at_end
        if entries:
            self._position = entries[-1][0]
            self._come_to = max(self._come_to, self._position, key=order)
            self._adapt(entries, time.monotonic())
        return entries, wake_ups

    def _read_wake_ups(self, entries: list[tuple[bytes, list[bytes]]]) -> set[bytes]:
        self.added, wake_ups = [], set()
        for entry, (name, text, *_) in entries:
            self._last_wake_up = entry
            try:
                if name == JOBS:
                    batch_id, position, queues = Added.loads(text)
                    self.added += [(batch_id, position, queue) for queue in queues]
                else:
                    wake_ups.add(name)
            except ValueError:  # of another version
                wake_ups.add(ANYTHING)
        self.reconcile_requested |= RECONCILE_NOW in wake_ups
        return wake_ups

    def _adapt(self, entries: list[tuple[bytes, bytes]], now: float) -> None:
        """Adapts the next read to the size and the rate of the outcomes."""
        count = len(entries)
        mean = sum(len(text) for _, text in entries) // count
        self._count = max(1, min(CHUNK, LARGEST // max(mean, 1)))
        seconds_for_bulk = BULK / count * (now - self._read_at)
        self._read_at, self._linger_until = now, now + (min(LINGER, seconds_for_bulk) if count > FEW else 0.0)

    def record(self, entries: list[tuple[bytes, bytes]], *, claims: int = 0) -> applying.Recorded:
        """Applies the outcomes of one read and deletes them from the stream; `claims` as in `applying.record`."""
        found = [(entry, _loads(entry, text)) for entry, text in entries]
        outcomes = [outcome for _, outcome in found if outcome]
        unreadable = [entry for entry, outcome in found if not outcome]
        recorded = applying.record(outcomes, self._lease, claims=claims) if outcomes else applying.Recorded()
        done = unreadable + [outcome.entry_id for outcome in recorded.done if outcome.entry_id]
        if done:
            # After the commit: a crash between a deletion and the commit would lose the outcomes.
            self._redis.xdel(self._keys.outcomes, *done)
        for job_id, dispatch, queue in recorded.superseded:
            self._scripts.withdraw(self._keys.rq_id(job_id, dispatch), queue)
        self.postponed |= {outcome.batch_id for outcome in recorded.postponed}
        self.follow_up(recorded)
        return recorded

    def follow_up(self, recorded: applying.Recorded) -> None:
        """After the transaction: counts outcomes, cancels orphans, and logs what no worker could log."""
        self.counts += Counter(str(outcome.kind) for outcome in recorded.done)
        if recorded.given_up:
            children.cancel_orphans(recorded.given_up)
        for change in recorded.failures:
            outcome, text = change.outcome, "Job %s of batch %s failed for good (%s): %s"
            error = change.reason or outcome.error
            jobs_logger.error(text, outcome.job_id, outcome.batch_id, outcome.kind, error)
        silent = [outcome for outcome in recorded.done if outcome.kind is Kind.VANISHED and not outcome.was_logged]
        if vanished := {outcome.job_id: outcome for outcome in silent if outcome.job_id in recorded.given_up}:
            for job_id, func in database.jobs().filter(pk__in=vanished).values_list("pk", "func"):
                outcome = vanished[job_id]
                jobs_logger.warning("Job %s (%s) was not started (%s): %s", job_id, func, outcome.reason, outcome.error)

    def has_come_to(self, entry: bytes) -> bool:
        """Whether everything up to this entry was read, and applied unless it was postponed."""
        return order(self._come_to) >= order(entry)

    def unapplied(self, entry: bytes) -> set[UUID] | None:
        """The batches that have an unapplied outcome up to this entry; None if that may be any batch."""
        oldest: Any = self._redis.xrange(self._keys.outcomes, count=1)
        if not oldest or order(oldest[0][0]) > order(entry):
            return set()
        return self.postponed | self._postponed_before if self.has_come_to(entry) else None

    def last_id(self) -> bytes:
        last = self._last_id(self._keys.outcomes)
        if order(last) < order(self._come_to):  # a restored server: the ids that it gives from now on were not read
            self._come_to = b"0-0"
        return last

    def _last_id(self, key: str) -> bytes:
        if not self._redis.exists(key):
            return b"0-0"
        info: Any = self._redis.xinfo_stream(key)
        last = info["last-generated-id"]
        return last if isinstance(last, bytes) else last.encode()


def order(entry: bytes) -> tuple[int, int]:
    """The sort key of a stream id."""
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)


def _entries(found: Any, key: str) -> list[tuple[bytes, list[bytes]]]:
    """(entry, [field, value, …]) of one stream in a reply to XREAD: a list of pairs or, with RESP3, a dict."""
    streams = found.items() if isinstance(found, dict) else found or []
    return next((entries for name, entries in streams if name == key.encode()), [])


def _loads(entry: bytes, text: bytes) -> Outcome | None:
    """None if the text names no job: it can only be deleted, and the reconciler finds the job."""
    try:
        return Outcome.loads(text, entry)
    except ValueError:
        logger.exception("Entry %s of the outcome stream (%d bytes) cannot be read.", entry.decode(), len(text))
        return Outcome.salvaged(text, entry)
