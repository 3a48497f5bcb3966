"""The outcome stream into the books."""

import logging
import time
from collections import Counter
from typing import Any
from uuid import UUID

from redis import Redis

from .. import database
from ..transitions import applying, children
from ..transport.client import ANYTHING, JOBS, RECONCILE_NOW, Added, Keys
from ..transport.outcomes import Kind, Outcome
from ..transport.scripts import Scripts
from .lease import Lease

logger = logging.getLogger("django_batches")
jobs_logger = logging.getLogger("django_batches.jobs")

CHUNK = 1_000
"""Outcomes of one transaction."""
FIRST = 200
"""Outcomes of the first read, of which nobody knows how large they are."""
LARGEST = 64 << 20
"""Bytes of outcomes that one read is meant to bring."""
LINGER = 0.1
"""Seconds that outcomes are left to gather at most, where they come so fast that a transaction gets many: its own cost
is that of a hundred outcomes."""
BULK = 200
"""Outcomes that are worth a transaction."""
FEW = 2
"""Outcomes that are applied at once, and so are those after them."""


class Recorder:
    """Reads the stream from where it stands, applies, commits, deletes. No consumer group: there is one reader."""

    def __init__(self, redis: Redis, lease: Lease) -> None:
        self._redis = redis
        # redis-py would make a dict of each entry, and one outcome of each job comes this way.
        redis.set_response_callback("XREAD", _as_it_came)
        self._lease = lease
        self._keys = Keys()
        self._scripts = Scripts(redis)
        self._position: str | bytes = "0-0"
        self._wake_ups: str | bytes = "$"
        self._dry: str | bytes = "0-0"
        self._count = FIRST
        """Outcomes that the next read takes at most."""
        self._read_at = self._free_at = 0.0
        self._come_to = b"0-0"
        """Up to here every outcome was read, and applied unless it was postponed."""
        self.is_at_end = True
        """The last read came to the end of the stream."""
        self._postponed: set[UUID] = set()
        self._postponed_before: set[UUID] = set()
        """The batches of postponed outcomes: since the last rewind, and before it."""
        self._is_whole = True
        """Since the last rewind everything was read."""
        self.reconcile_requested = False
        """Somebody wants the books compared with Redis now."""
        self.added: list[Added] = []
        """By the pokes of the last read."""
        self.counts: Counter[str] = Counter()
        """Outcomes by kind since the last `totals.add`."""

    def rewind(self) -> None:
        """Reads from the start again: outcomes that were postponed, or a stream that went back with its server."""
        self._position = "0-0"
        # Of a round that did not come to the end, the batches behind are those of the one before.
        before = set() if self._is_whole else self._postponed_before
        self._postponed, self._postponed_before, self._is_whole = set(), self._postponed | before, False

    @property
    def has_postponed(self) -> bool:
        """Whether outcomes wait for batches that somebody holds locked."""
        return bool(self._postponed)

    def linger(self) -> None:
        """Group commit: lets outcomes gather after a transaction with many, until an executor has nothing to do."""
        while (milliseconds := int((self._free_at - time.monotonic()) * 1000)) > 0:
            found: Any = self._redis.xread({self._keys.idle: self._dry}, block=milliseconds)
            if found:
                self._dry = _entries(found, self._keys.idle)[-1][0]
                return

    def _pace(self, count: int, now: float) -> None:
        gathering = BULK / count * (now - self._read_at)
        self._read_at, self._free_at = now, now + (min(LINGER, gathering) if count > FEW else 0.0)

    def read(self, block: int) -> tuple[list[tuple[bytes, bytes]], set[bytes]]:
        """The next outcomes as (entry, text), and what was poked but `added`; waits up to `block` milliseconds."""
        if self._wake_ups == "$":
            self._wake_ups = self._last_id(self._keys.wake_ups)
        streams: Any = {self._keys.outcomes: self._position, self._keys.wake_ups: self._wake_ups}
        found: Any = self._redis.xread(streams, count=self._count, block=max(1, block))
        pokes = _entries(found, self._keys.wake_ups)
        self.added, poked = [], set()
        for _, (what, text, *_) in pokes:
            if what != JOBS:
                poked.add(what)
                continue
            try:
                self.added.append(Added.loads(text))
            except ValueError:  # of another version
                poked.add(ANYTHING)
        if pokes:
            self._wake_ups = pokes[-1][0]
            self.reconcile_requested |= RECONCILE_NOW in poked
        found_outcomes = _entries(found, self._keys.outcomes)
        self.is_at_end = len(found_outcomes) < self._count
        self._is_whole |= self.is_at_end
        entries = [(entry, fields[1] if fields[0] == b"o" else b"") for entry, fields in found_outcomes]
        if entries:
            self._position = entries[-1][0]
            mean = sum(len(text) for _, text in entries) // len(entries)
            self._count = max(1, min(CHUNK, LARGEST // max(mean, 1)))
            self._come_to = max(self._come_to, entries[-1][0], key=order)
            self._pace(len(entries), time.monotonic())
        return entries, poked

    def record(self, entries: list[tuple[bytes, bytes]], *, claims: int = 0) -> applying.Recorded:
        """Applies the outcomes of one read and deletes them from the stream; `claims` as in `recording.record`."""
        outcomes, broken = [], []
        for entry, text in entries:
            try:
                outcomes.append(Outcome.loads(text, entry))
            except ValueError:
                logger.exception("Entry %s of the outcome stream (%d bytes) cannot be read.", entry.decode(), len(text))
                if salvaged := Outcome.salvaged(text, entry):
                    outcomes.append(salvaged)
                else:  # it names no job, so it can only be dropped; the reconciler finds the job it was about
                    broken.append(entry)
        recorded = applying.record(outcomes, self._lease, claims=claims) if outcomes else applying.Recorded([])
        done = broken + [outcome.entry_id for outcome in recorded.done if outcome.entry_id]
        if done:
            # After the commit: the other way round a crash between the two would lose the outcomes.
            self._redis.xdel(self._keys.outcomes, *done)
        for job_id, dispatch, queue in recorded.superseded:
            self._scripts.withdraw(self._keys.rq_id(job_id, dispatch), queue)
        self._postponed |= {outcome.batch_id for outcome in recorded.postponed}
        self.count(recorded.done)
        follow_up(recorded)
        return recorded

    def count(self, outcomes: list[Outcome]) -> None:
        """Counts outcomes that are done with, for the metrics."""
        self.counts += Counter(str(outcome.kind) for outcome in outcomes)

    def first_unapplied(self) -> bytes | None:
        """The oldest entry that is still in the stream."""
        found: Any = self._redis.xrange(self._keys.outcomes, count=1)
        return found[0][0] if found else None

    def has_come_to(self, entry: bytes) -> bool:
        """Whether everything up to this entry was read, and applied unless it was postponed."""
        return order(self._come_to) >= order(entry)

    def unapplied(self, entry: bytes) -> set[UUID] | None:
        """The batches of which an outcome up to this entry is not applied yet; None where that may be any."""
        first = self.first_unapplied()
        if first is None or order(first) > order(entry):
            return set()
        if not self.has_come_to(entry):
            return None
        return self._postponed | self._postponed_before

    def last_id(self) -> bytes:
        """The newest id that the stream has given, also of an entry deleted since."""
        last = self._last_id(self._keys.outcomes)
        if order(last) < order(self._come_to):  # its server went back, and what it gives from now on was not read
            self._come_to = b"0-0"
        return last

    def _last_id(self, key: str) -> bytes:
        if not self._redis.exists(key):
            return b"0-0"
        info: Any = self._redis.xinfo_stream(key)
        last = info["last-generated-id"]
        return last if isinstance(last, bytes) else last.encode()


def order(entry: bytes) -> tuple[int, int]:
    """By which two ids of a stream compare."""
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)


def _as_it_came(answer: Any, **options: Any) -> Any:
    return answer


def _entries(found: Any, key: str) -> list[tuple[bytes, list[bytes]]]:
    """(entry, [field, value, …]) of one stream of an answer to XREAD: a list of pairs or, by RESP3, a dict."""
    streams = found.items() if isinstance(found, dict) else found or []
    return next((entries for name, entries in streams if name == key.encode()), [])


def follow_up(recorded: applying.Recorded) -> None:
    """What is not part of the transaction: orphans are cancelled, and failures that no worker could log are logged."""
    if recorded.given_up:
        children.cancel_orphans(recorded.given_up)
    for change in recorded.failures:
        outcome = change.outcome
        jobs_logger.error(
            "Job %s of batch %s failed for good (%s): %s",
            outcome.job_id, outcome.batch_id, outcome.kind, change.reason or outcome.error,
        )  # fmt: skip
    _log_vanished(recorded)


def _log_vanished(recorded: applying.Recorded) -> None:
    vanished = {
        outcome.job_id: outcome
        for outcome in recorded.done
        if outcome.kind is Kind.VANISHED and not outcome.was_logged and outcome.job_id in recorded.given_up
    }
    if not vanished:
        return
    for job_id, func in database.jobs().filter(pk__in=vanished).values_list("pk", "func"):
        outcome = vanished[job_id]
        jobs_logger.warning("Job %s (%s) was not started (%s): %s", job_id, func, outcome.reason, outcome.error)
