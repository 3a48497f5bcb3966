"""The loop of the coordinator: outcomes as they come, and a poll every second that is the promise behind every poke."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.db import Error
from redis.exceptions import RedisError

from .. import database
from ..conf import settings
from ..transitions import cancelling, children, claiming, deleting, repairing, retrying
from ..transport.client import Keys, client
from . import totals
from .dispatch import CALLBACKS, Dispatcher
from .lease import Lease, LeaseLost, database_time
from .prune import Pruner
from .reconcile import SECOND_LOOK, Reconciler
from .record import Recorder
from .suspects import Suspects

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
"""Of its time that a coordinator looks at queues from the start, where nobody has asked for it."""
LOOKS = 3
"""Statements that pass the same rows then: which queues, which batches, the claim."""
LONGEST_SHARE = 10.0
"""Seconds after which it looks all the same."""
FENCE_TTL = 86_400


class Every:
    """Says when something is due again."""

    def __init__(self, seconds: float, *, at_once: bool = True) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + (0 if at_once else seconds)

    def is_due(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._seconds
        return True

    def soon(self, seconds: float = 0.0) -> None:
        self._next = min(self._next, time.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        return max(0.0, self._next - time.monotonic())


class Coordinator:
    """Keeps the books until `should_stop()`; stands by while another one does."""

    def __init__(self, name: str, should_stop: Callable[[], bool]) -> None:
        self.name = name
        self._should_stop = should_stop
        self._redis = client()
        self._keys = Keys()
        self._lease = Lease(name)
        self._trouble = ""
        self._suspects = Suspects()
        """Outlives the loss of a connection: or each would put off the second look at what is lost."""
        self._running = Every(RUNNING, at_once=False)
        self._reconcile, self._upkeep = Every(RECONCILE), Every(UPKEEP)
        self._counters = Every(COUNTERS, at_once=False)
        self._prune, self._pruner, self._deletions = Every(PRUNE), Pruner(), Every(UPKEEP)
        self._look_at = 0.0
        """When the next poll looks at the queues from the start."""

    def run(self) -> None:
        """Stays up while Redis or the database is away, and says so once."""
        pause = 0.1
        while not self._should_stop():
            try:
                if self._lease.acquire(self._newest_token()):
                    self._begin()
                    while not self._should_stop():
                        self.turn()
                        pause = 0.1
                    self._work_off()
                    self._lease.release()
                    return
                self._wait(STANDBY)
            except LeaseLost as lost:
                logger.warning("%s It stands by.", lost)
                self._wait(STANDBY)
            except (RedisError, Error, OSError) as error:
                self._say(error)
                database.connection().close()
                self._redis.connection_pool.disconnect()  # the server may be a replica by now
                self._wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def turn(self) -> int:
        """Waits for outcomes, pokes or the poll, and does what is due; returns how many entries it read."""
        due = min(self._poll.remaining, self._rewind.remaining if self._recorder.has_postponed else POLL)
        self._recorder.linger()
        entries, poked = self._recorder.read(0 if self._should_stop() else int(due * 1000))
        recorded = self._recorder.record(entries, claims=CALLBACKS) if entries else None
        if recorded:
            self._dispatcher.push_callbacks(recorded.claimed)
            if recorded.has_held:
                self._dispatcher.forget_rates()
        polls = self._poll.is_due()
        # Not before the end: more outcomes of locked batches than one read gives would keep all others waiting.
        if polls or (self._recorder.has_postponed and self._recorder.is_at_end and self._rewind.is_due()):
            self._recorder.rewind()
        if polls:
            self._dispatcher.include(claiming.promote_due(self._lease))
        told = 0
        if polls or (recorded and recorded.is_for_parents):
            while count := children.notify_parents(self._lease):
                told += count
        if told or (recorded and recorded.callbacks > len(recorded.claimed)):
            self._dispatcher.dispatch_callbacks()
        for batch_id, position, queues in self._recorder.added:
            self._dispatcher.include((batch_id, position, queue) for queue in queues)
        self._dispatcher.include(recorded.put_back if recorded else ())
        self._dispatcher.include(self._reconciler.put_back)
        self._reconciler.put_back = []
        # Right after the poke: somebody who adds one chunk after the other soon has the batch locked again.
        self._dispatch(polls, everywhere=bool(poked))
        # Not for every chunk of jobs that somebody adds: it is a dozen statements.
        is_asked = polls or bool(poked)
        if is_asked or (recorded and recorded.has_given_up):
            self._carry_on()
        if is_asked:
            self._dispatcher.dispatch_callbacks()
        if polls:
            self._look_after()
        if self._trouble:
            logger.warning("%s goes on: Redis and the database are back.", self.name)
            self._trouble = ""
        return len(entries)

    def _dispatch(self, polls: bool, *, everywhere: bool) -> None:
        """Jobs to RQ; from the start of the queues where somebody asks for it, and at the polls.

        A look from the start passes all rows that were claimed since the last vacuum, which takes long where there are
        millions: it is put off then, for it finds only what nobody has told.
        """
        begun = time.monotonic()
        if everywhere or (polls and begun >= self._look_at):
            self._dispatcher.look_everywhere()
            took = time.monotonic() - begun
            self._look_at = begun + min(LOOKS * took / SHARE, LONGEST_SHARE)
        self._dispatcher.dispatch_jobs()

    def _work_off(self) -> None:
        """Applies what the executors of this worker have told. Those of others may go on telling for ever."""
        last = self._recorder.last_id()
        while self.turn() and not self._recorder.has_come_to(last):
            pass

    def _begin(self) -> None:
        # At once, and not with the first push: an older coordinator that wakes up must not push any more.
        self._redis.set(self._keys.fence, self._lease.token, ex=FENCE_TTL)
        logger.info("%s keeps the books (lease %s).", self.name, self._lease.token)
        self._recorder = Recorder(self._redis, self._lease)
        self._dispatcher = Dispatcher(self._redis, self._lease)
        self._reconciler = Reconciler(self._redis, self._lease, self._recorder, self._suspects)
        self._suspects.take_over(self._redis)
        self._poll, self._rewind = Every(POLL), Every(POSTPONED)
        self._look_at = 0.0  # the new dispatcher knows of no queue
        self._reconcile.soon()  # whatever ended the last turn may have come between a claim and its push

    def _newest_token(self) -> int:
        """The newest token that Redis knows: a new database beside an old Redis would begin again below it."""
        newest: Any = self._redis.get(self._keys.fence)
        return int(newest or 0)

    def _look_after(self) -> None:
        if self._recorder.reconcile_requested:
            self._recorder.reconcile_requested = False
            for every in (self._reconcile, self._upkeep, self._deletions, self._counters):
                every.soon()
        self._reconciler.act()
        if self._running.is_due():
            self._reconciler.mark_running()
        if self._reconcile.is_due():
            self._reconciler.look()
            self._suspects.hand_over(self._redis)
            self._reconciler.act()  # at once where the stream is applied, as it mostly is
            self._reconciler.sweep()
            if self._reconciler.has_suspects:
                self._reconcile.soon(SECOND_LOOK)
        now = database_time()
        cancelling.mark_overdue(now)
        if self._upkeep.is_due():
            children.cancel_orphans()
            repairing.end_what_can_end()
            seconds = settings().OPEN_TIMEOUT
            cancelling.abandon(now - timedelta(seconds=seconds), seconds)
        if self._deletions.is_due() and deleting.continue_deletions():
            self._deletions.soon()  # with the next poll: outcomes come first
        if self._prune.is_due() and self._pruner.turn():
            self._prune.soon()  # with the next poll: outcomes come first
        if self._counters.is_due():
            for batch_id in repairing.to_check():
                repairing.repair_counters(batch_id, skip_locked=True)
        self._recorder.counts[totals.REPAIRS] += repairing.repairs()
        totals.add(self._redis, self._recorder.counts)

    def _carry_on(self) -> None:
        """What somebody has asked for, in what is below it and where it was cut off."""
        self._hold()
        cancelling.continue_cancels()
        children.cancel_children()
        retrying.continue_retries()

    def _hold(self) -> None:
        """Makes the set of held batches in Redis what the database says.

        The set is read before the database: whoever cancels adds to the set after the commit, so a batch that is in the
        set and not held by the database has been resumed or has ended.
        """
        members: Any = self._redis.smembers(self._keys.on_hold)
        present = set(members)  # bytes: the set may hold what is no text
        wanted = {key.hex.encode() for key in cancelling.batches_on_hold()}
        if wanted - present:
            self._redis.sadd(self._keys.on_hold, *(wanted - present))
        if present - wanted:
            self._redis.srem(self._keys.on_hold, *(present - wanted))

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._should_stop():
            time.sleep(min(0.1, seconds))

    def _say(self, error: Exception) -> None:
        trouble = "cannot reach Redis" if isinstance(error, RedisError) else "cannot reach the database"
        if isinstance(error, Error) and database.is_missing_table(error):
            trouble = "misses tables of this version: run manage.py migrate"
        if self._trouble != trouble:
            logger.error("%s %s (%s: %s); it tries on.", self.name, trouble, type(error).__name__, error)
            self._trouble = trouble
