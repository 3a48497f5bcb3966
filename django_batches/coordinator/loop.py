"""The coordinator's loop: applies outcomes as they come, dispatches due jobs, and repairs.

A one-second poll guarantees progress; wake-ups only make it faster.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import Error
from redis.exceptions import RedisError

from .. import database
from ..conf import settings
from ..transitions import cancelling, children, claiming, deleting, repairing, retrying
from ..transitions.applying import Recorded
from ..transport.client import Keys, client
from . import totals
from .dispatch import CALLBACKS, Dispatcher
from .lease import Lease, LeaseLost
from .prune import Pruner
from .reconcile import SECOND_LOOK, Reconciler
from .record import Recorder
from .suspects import Suspects
from .timer import Every

logger = logging.getLogger("django_batches")

POLL = 1.0
STANDBY = 2.0
RUNNING = 3.0
RECONCILE = 15.0
UPKEEP = 15.0
COUNTERS = 600.0
PRUNE = 600.0
POSTPONED = 0.05
LONGEST_PAUSE = 2.0
SHARE = 0.1
"""Share of its time that a coordinator spends on full scans of the queues that no wake-up requested."""
SCAN_COST = 3
"""Statements that read the same rows in a full scan: one each for the queues, the batches and the claim."""
LONGEST_SHARE = 10.0
"""Seconds after which it scans again in any case."""
FENCE_TTL = 86_400


@dataclass
class Turn:
    """What a turn of the loop has read."""

    read: int
    """Entries of the outcome stream."""
    is_woken: bool
    """A wake-up did not name the jobs that wait, so anything may be due."""
    polls: bool
    recorded: Recorded
    has_callbacks: bool
    """Callbacks are due that were not claimed together with the outcomes."""


class Coordinator:
    """Runs until `should_stop()`: as the active coordinator, or as a standby while another one is active."""

    def __init__(self, name: str, should_stop: Callable[[], bool]) -> None:
        self.name, self._should_stop = name, should_stop
        self._redis, self._keys, self._lease = client(), Keys(), Lease(name)
        self._trouble = ""
        self._suspects = Suspects()
        """Survives a lost connection: each would delay the second look at lost jobs otherwise."""
        self._running = Every(RUNNING, at_once=False)
        self._reconcile, self._upkeep, self._deletions = Every(RECONCILE), Every(UPKEEP), Every(UPKEEP)
        self._counters = Every(COUNTERS, at_once=False)
        self._prune, self._pruner = Every(PRUNE), Pruner()
        self._scan_at = 0.0

    def run(self) -> None:
        """Keeps running while Redis or the database is away, and logs each outage once."""
        pause = 0.1
        while not self._should_stop():
            try:
                if self._lease.acquire(self._newest_token()):
                    self._begin()
                    while not self._should_stop():
                        self.turn()
                        pause = 0.1
                    self._apply_remaining()
                    self._lease.release()
                    return
                self._wait(STANDBY)
            except LeaseLost as lost:
                logger.warning("%s It stands by.", lost)
                self._wait(STANDBY)
            except (RedisError, Error, OSError) as error:
                self._log_once(error)
                database.connection().close()
                self._redis.connection_pool.disconnect()  # the server may be a replica by now
                self._wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def turn(self) -> int:
        """Runs the steps of one turn; returns how many entries of the outcome stream it read."""
        turn = self._apply_outcomes()
        self._rewind_stream(turn)
        self._promote_scheduled_jobs(turn)
        self._notify_parents(turn)
        self._dispatch_new_callbacks(turn)
        # Before the dispatch, which looks only where it knows of waiting jobs.
        self._note_waiting_jobs(turn)
        # Right after the wake-up: a creator that adds chunk after chunk soon has the batch locked again.
        self._dispatch_jobs(turn)
        self._continue_operations(turn)
        self._maintain(turn)
        self._log_recovery()
        return turn.read

    def _apply_outcomes(self) -> Turn:
        """Waits for outcomes, a wake-up or the poll, and applies the outcomes."""
        wait = min(self._poll.remaining, self._rewind.remaining if self._recorder.postponed else POLL)
        self._recorder.linger()
        entries, wake_ups = self._recorder.read(0 if self._should_stop() else int(wait * 1000))
        recorded = self._recorder.record(entries, claims=CALLBACKS)
        self._dispatcher.push_callbacks(recorded.claimed)
        if recorded.has_on_hold:
            self._dispatcher.forget_rates()
        return Turn(len(entries), bool(wake_ups), self._poll.is_due(), recorded, recorded.claimable_callbacks > 0)

    def _rewind_stream(self, turn: Turn) -> None:
        # Only at the end: more outcomes of locked batches than one read returns would block all others.
        if turn.polls or (self._recorder.postponed and self._recorder.is_at_end and self._rewind.is_due()):
            self._recorder.rewind()

    def _promote_scheduled_jobs(self, turn: Turn) -> None:
        if turn.polls:
            self._dispatcher.include(claiming.promote_due(self._lease))

    def _notify_parents(self, turn: Turn) -> None:
        if turn.polls or turn.recorded.is_for_parents:
            while children.notify_parents(self._lease):
                turn.has_callbacks = True

    def _dispatch_new_callbacks(self, turn: Turn) -> None:
        if turn.has_callbacks:
            self._dispatcher.dispatch_callbacks()

    def _note_waiting_jobs(self, turn: Turn) -> None:
        self._dispatcher.include([*self._recorder.added, *turn.recorded.put_back, *self._reconciler.requeued])
        self._reconciler.requeued = []

    def _dispatch_jobs(self, turn: Turn) -> None:
        """Dispatches jobs; scans the queues from their start after a wake-up, and at polls if scans are fast."""
        # A scan passes all rows claimed since the last vacuum, maybe millions, to find jobs that no wake-up named.
        start = time.monotonic()
        if turn.is_woken or (turn.polls and start >= self._scan_at):
            self._dispatcher.look_everywhere()
            self._scan_at = start + min(SCAN_COST * (time.monotonic() - start) / SHARE, LONGEST_SHARE)
        self._dispatcher.dispatch_jobs()

    def _continue_operations(self, turn: Turn) -> None:
        """Continues cancels and retries that were requested or interrupted, and applies them to child batches."""
        # Not for every chunk of added jobs: these are a dozen statements.
        if turn.polls or turn.is_woken or turn.recorded.failed_too_often:
            self._sync_batches_on_hold()
            cancelling.continue_cancels()
            children.cancel_children()
            retrying.continue_retries()
        if turn.polls or turn.is_woken:
            self._dispatcher.dispatch_callbacks()

    def _maintain(self, turn: Turn) -> None:
        """Repairs, timeouts, deletions, pruning and metrics. At polls only."""
        if not turn.polls:
            return
        if self._recorder.reconcile_requested:
            self._recorder.reconcile_requested = False
            for timer in (self._reconcile, self._upkeep, self._deletions, self._counters):
                timer.soon()
        self._reconciler.act()
        if self._running.is_due():
            self._reconciler.mark_running()
        if self._reconcile.is_due():
            self._compare_with_redis()
        self._enforce_time_limits()
        # One short step each, and the next one with the next poll: outcomes come first.
        if self._deletions.is_due() and deleting.continue_deletions():
            self._deletions.soon()
        if self._prune.is_due() and self._pruner.turn():
            self._prune.soon()
        if self._counters.is_due():
            for batch_id in repairing.batches_to_check():
                repairing.repair_counters(batch_id, skip_locked=True)
        self._recorder.counts[totals.REPAIRS] += repairing.repairs()
        totals.add(self._redis, self._recorder.counts)

    def _log_recovery(self) -> None:
        if self._trouble:
            logger.warning("%s has recovered: Redis and the database are back.", self.name)
            self._trouble = ""

    def _compare_with_redis(self) -> None:
        self._reconciler.look()
        self._suspects.hand_over(self._redis)
        self._reconciler.act()  # at once if the stream is applied, as it usually is
        self._reconciler.sweep()
        if self._suspects.since:
            self._reconcile.soon(SECOND_LOOK)

    def _enforce_time_limits(self) -> None:
        now = database.dialect().now()
        cancelling.mark_overdue(now)
        if self._upkeep.is_due():
            children.cancel_orphans()
            repairing.end_batches()
            seconds = settings().OPEN_TIMEOUT
            cancelling.cancel_abandoned(now - timedelta(seconds=seconds), seconds)

    def _sync_batches_on_hold(self) -> None:
        """Makes the set of batches on hold in Redis equal to the database's."""
        # Read first: a cancel adds to the set after its commit, so what is not on hold in the database was resumed.
        members: Any = self._redis.smembers(self._keys.on_hold)
        present = set(members)  # bytes: a member may not be text
        wanted = {key.hex.encode() for key in cancelling.batches_on_hold()}
        if missing := wanted - present:
            self._redis.sadd(self._keys.on_hold, *missing)
        if surplus := present - wanted:
            self._redis.srem(self._keys.on_hold, *surplus)

    def _begin(self) -> None:
        # At once, not with the first push: an older coordinator that wakes up must not push any more.
        self._redis.set(self._keys.fence, self._lease.token, ex=FENCE_TTL)
        logger.info("%s is the active coordinator (lease %s).", self.name, self._lease.token)
        self._recorder = Recorder(self._redis, self._lease)
        self._dispatcher = Dispatcher(self._redis, self._lease)
        self._reconciler = Reconciler(self._redis, self._lease, self._recorder, self._suspects)
        self._suspects.take_over(self._redis)
        self._poll, self._rewind = Every(POLL), Every(POSTPONED)
        self._scan_at = 0.0  # the new dispatcher knows of no queue
        self._reconcile.soon()  # the error that ended the last turn may have come between a claim and its push

    def _apply_remaining(self) -> None:
        """Applies the outcomes that are in the stream now; other workers may add more without end."""
        last = self._recorder.last_id()
        while self.turn() and not self._recorder.has_come_to(last):
            pass

    def _newest_token(self) -> int:
        """The newest token in Redis: with an old Redis, a new database would start below it."""
        newest: Any = self._redis.get(self._keys.fence)
        return int(newest or 0)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._should_stop():
            time.sleep(min(0.1, seconds))

    def _log_once(self, error: Exception) -> None:
        trouble = "cannot reach Redis" if isinstance(error, RedisError) else "cannot reach the database"
        if isinstance(error, Error) and database.dialect().is_missing_table(error):
            trouble = "misses tables of this version: run manage.py migrate"
        if self._trouble != trouble:
            logger.error("%s %s (%s: %s); retrying.", self.name, trouble, type(error).__name__, error)
            self._trouble = trouble
