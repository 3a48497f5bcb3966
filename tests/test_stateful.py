"""Adding, running, failing, killing, retrying, cancelling, pausing, children, doubled and late outcomes in any order.

Hypothesis chooses what happens next and shrinks what breaks a rule of `books`. Every example is rolled back.
STATEFUL_EXAMPLES=5000 looks for longer, and at other orders each time.
"""

import os
import sys
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from django_batches import Batch
from django_batches.context import Running, running
from django_batches.exceptions import BatchError, BatchExists, BatchFinished
from django_batches.models import BatchJob
from django_batches.outcomes import Kind, Outcome
from django_batches.states import IN_FLIGHT, WAITING_HERE
from django_batches.transitions import children, dispatching, recording, repairing, retrying, steering
from django_batches.transitions.dispatching import Claimed

from . import tasks
from .books import EVENTS, Books, aggregates_broken, drift, keep_books, name
from .road import claim, outcome_of

EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", 0))
FOREIGN = [Kind.KILLED, Kind.INTERRUPTED, Kind.TIMEOUT, Kind.VANISHED, Kind.STOPPED, Kind.HELD]
"""What others say of a run, which may go on all the same."""
OWN = [Kind.FAILED, Kind.RETRY, Kind.CANCELLED, Kind.MISSING]
LONG = timedelta(days=1)
PHASES = [p for p in Phase if p.name not in os.environ.get("STATEFUL_SKIP", "").split(",")]


@dataclass(eq=False)
class Run:
    """A dispatch of a job, as a worker has it."""

    claimed: Claimed
    running: Running
    success: Outcome | None = None
    """What it has told at its end; told again, it is the same."""
    has_left: bool = False

    def __repr__(self):
        return f"<run {self.claimed.dispatch} of {self.claimed.id.hex[-6:]} {self.claimed.event}>"

    def call(self, function):
        """As code inside of the job."""

        def inside():
            running.set(self.running)
            return function()

        return copy_context().run(inside)

    def succeed(self, returned=None):
        if self.success is None:
            opened = bool(self.running.children)
            self.success = outcome_of(self.claimed, has_children=opened, returned=returned)
        return self.success


class TheBooks(RuleBasedStateMachine):
    batches = Bundle("batches")
    runs = Bundle("runs")
    left = Bundle("left")
    """Runs of which an outcome was told."""

    def __init__(self):
        super().__init__()
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.count = 0
        self.all_runs = {}
        self.succeeded = {}

    def teardown(self):
        try:
            if sys.exception() is None:
                self.settle_everything()
        finally:
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)

    # Filling

    options = st.fixed_dictionaries(
        {
            "max_attempts": st.integers(1, 2),
            "concurrency": st.sampled_from([None, None, 1, 2]),
            "max_failures": st.sampled_from([None, None, 0, 1]),
            "key": st.sampled_from([None, None, None, "k"]),
        }
    )
    events = st.lists(st.sampled_from(EVENTS), max_size=4)
    sizes = st.integers(0, 3)

    def open(self, options, events, size, sealed):
        self.count += 1
        opening = Batch.open(f"B{self.count}", **options)
        batch = opening.__enter__()
        for event in events:
            getattr(batch, f"on_{event}")(tasks.ok_callback)
        batch.map(tasks.ok, range(size))
        opening.seal() if sealed else opening.flush()
        return batch.pk

    @initialize(target=batches, events=events)
    def begin(self, events):
        return self.open({"max_attempts": 2}, events, 2, True)

    @rule(target=batches, options=options, events=events, size=sizes, sealed=st.booleans())
    def open_batch(self, options, events, size, sealed):
        try:
            return self.open(options, events, size, sealed)
        except BatchExists:
            assert Batch.objects.filter(key=options["key"], finished_at=None).count() == 1
            return multiple()

    @rule(target=batches, run=runs, options=options, events=events, size=sizes, sealed=st.booleans())
    def open_child(self, run, options, events, size, sealed):
        return self.child_of(run, options, events, size, sealed)

    @rule(target=batches, run=left, options=options, events=events, size=sizes, sealed=st.booleans())
    def open_child_of_a_run_that_was_given_up(self, run, options, events, size, sealed):
        assume(not run.has_left)
        return self.child_of(run, options, events, size, sealed)

    def child_of(self, run, options, events, size, sealed):
        job = BatchJob.objects.filter(pk=run.claimed.id).first()
        counts = job and job.dispatch == run.claimed.dispatch and job.status in IN_FLIGHT
        try:
            key = run.call(lambda: self.open(options, events, size, sealed))
        except BatchExists:
            return multiple()
        except BatchFinished:
            assert not counts or Batch.objects.get(pk=run.claimed.batch_id).cancelled_at
            return multiple()
        assert counts
        return key

    @rule(key=batches, size=st.integers(1, 2))
    def grow(self, key, size):
        batch = Batch.objects.filter(pk=key).first()
        assume(batch)
        takes = not (batch.finished_at or batch.cancelled_at)
        try:
            batch.map(tasks.ok, range(size))
            assert takes
        except BatchFinished:
            assert not takes

    @rule(key=batches)
    def seal(self, key):
        if batch := Batch.objects.filter(pk=key).first():
            batch.seal()

    # Running

    @rule(target=runs, limit=st.integers(1, 4))
    def claim(self, limit):
        found = [
            job
            for queue in dispatching.queues_with_jobs()
            for job in dispatching.claim_jobs(queue, limit, None, timezone.now)[0]
        ]
        return multiple(*[self.start(job) for job in found])

    @rule(target=runs, limit=st.integers(1, 2))
    def claim_callbacks(self, limit):
        return multiple(*[self.start(job) for job in dispatching.claim_callbacks(limit, timezone.now)])

    def start(self, job):
        execution = job.id, job.dispatch
        assert execution not in self.all_runs
        run = Run(job, Running(job.id, job.batch_id, job.dispatch, bool(job.event)))
        self.all_runs[execution] = run
        return run

    @rule(run=runs)
    def seen_with_a_lease(self, run):
        dispatching.mark_running([(run.claimed.id, run.claimed.dispatch, timezone.now(), "worker")], timezone.now)

    @rule(target=left, run=consumes(runs), returns=st.integers(0, 2))
    def succeed(self, run, returns):
        self.tell(self.success_of(run, returns))
        return run

    @rule(target=left, run=consumes(runs), kind=st.sampled_from(OWN), final=st.booleans(), more=st.integers(0, 2))
    def fail(self, run, kind, final, more):
        run.has_left = True
        self.tell(self.outcome(run, kind, final, more))
        return run

    @rule(target=left, run=consumes(runs), kind=st.sampled_from(FOREIGN))
    def given_up(self, run, kind):
        self.tell(outcome_of(run.claimed, kind))
        return run

    @rule(run=left, kind=st.sampled_from([Kind.SUCCEEDED, *OWN, *FOREIGN]), returns=st.integers(0, 2))
    def told_late(self, run, kind, returns):
        """Another outcome of a run that has told one: doubled, or by a worker that was taken for lost."""
        if kind == Kind.SUCCEEDED:
            assume(run.success or not run.has_left)
            self.tell(self.success_of(run, returns))
        else:
            self.tell(self.outcome(run, kind, False, 1))

    @rule(one=runs, other=left, kind=st.sampled_from(FOREIGN), returns=st.integers(0, 2))
    def told_in_one_chunk(self, one, other, kind, returns):
        """A success and a loss of one run, and what another one says again, in one transaction."""
        told = [self.success_of(one, returns), outcome_of(one.claimed, kind)]
        self.tell(*told, *([other.success] if other.success else []))

    def success_of(self, run, returns):
        opened = [key for key in run.running.children if Batch.objects.filter(pk=key, is_awaited=True).exists()]
        run.has_left = True
        return run.succeed(opened[returns] if returns < len(opened) else None)

    def outcome(self, run, kind, final, more):
        fields = {"retry_max": more, "retry_after": 0.0} if kind == Kind.RETRY else {"is_final": final}
        return outcome_of(run.claimed, kind, **fields)

    def tell(self, *outcomes):
        recorded = recording.record(outcomes)
        assert not recorded.postponed
        self.given_up_jobs = recorded.given_up

    # Steering

    @rule(key=batches)
    def cancel(self, key):
        steering.cancel(key, "a mistake")

    @rule(key=batches)
    def pause(self, key):
        steering.pause(key)

    @rule(key=batches)
    def resume(self, key):
        steering.resume(key)

    @rule(key=batches, cancelled=st.booleans())
    def retry_failed(self, key, cancelled):
        self.or_nothing(lambda: retrying.retry_failed(key, cancelled))

    @rule(data=st.data(), verb=st.sampled_from(["retry", "cancel"]))
    def act_on_a_job(self, data, verb):
        statuses = WAITING_HERE if verb == "cancel" else ["failed", "cancelled"]
        keys = list(BatchJob.objects.filter(status__in=statuses).order_by("pk").values_list("pk", flat=True))
        assume(keys)
        job = BatchJob.objects.get(pk=data.draw(st.sampled_from(keys)))
        assert self.or_nothing(getattr(job, verb)) in (True, None)

    @rule(key=batches)
    def delete(self, key):
        self.or_nothing(lambda: Batch.objects.filter(pk=key).delete())

    @rule(key=batches)
    def delete_and_die(self, key):
        """The mark is set, and then the process dies."""
        try:
            repairing._tree(key)
            repairing._mark_for_deletion(key)
        except BatchError:
            pass

    def or_nothing(self, verb):
        """What the verb returns; where it refuses, nothing has changed."""
        before = Books.read()
        try:
            return verb()
        except BatchError as error:
            assert Books.read() == before, f"refused, and yet changed: {error}"
            assert "held by another transaction" not in str(error)

    # Keeping the books, in pieces as they may come

    @rule()
    def tell_parents(self):
        children.tell_parents()

    @rule()
    def cancel_orphans(self):
        children.cancel_orphans()

    @rule()
    def carry_cancels_down(self):
        children.carry_cancels_down()

    @rule()
    def carry_retries_on(self):
        retrying.carry_all_on()

    @rule()
    def promote(self):
        dispatching.promote_due(lambda: timezone.now() + LONG)

    @rule()
    def all_that_is_due(self):
        keep_books()
        books = Books.read()
        for batch in books.batches.values():
            parent = books.jobs.get(batch.parent_id)
            if batch.is_awaited:
                assert parent.dispatch == batch.parent_dispatch and parent.status in (*IN_FLIGHT, "waiting"), name(
                    batch
                )
                owner = books.batches.get(parent.batch_id)
                is_cancelled = owner and owner.cancelled_at and not owner.finished_at
                assert not is_cancelled or batch.cancelled_at or batch.finished_at, name(batch)

    # The rules

    @invariant()
    def the_rules_hold(self):
        books = Books.read()
        assert books.broken() == []
        for key, result in self.succeeded.items():
            job = books.jobs.get(key)
            assert job is None or (job.status, job.result_text) == ("succeeded", result), name(job)
        self.succeeded = {k: job.result_text for k, job in books.jobs.items() if job.status == "succeeded"}

    def settle_everything(self):
        """All that is under way succeeds, and then everything has ended; a retry of the roots mends all of it."""
        steering.abandon(timezone.now() + LONG, 0)
        self.settle()
        self.mend_everything()
        assert drift() == {}
        assert aggregates_broken() == []

    def settle(self):
        for batch in Batch.objects.filter(is_paused=True):
            batch.resume()
        for _ in range(100):
            dispatching.promote_due(lambda: timezone.now() + LONG)
            keep_books()
            for job in [*claim(), *claim(callbacks=True)]:
                self.start(job)
            flying = BatchJob.objects.filter(status__in=IN_FLIGHT).order_by("pk").values_list("pk", "dispatch")
            self.tell(*[self.end_of(self.all_runs[execution]) for execution in flying])
            self.the_rules_hold()
            if not Books.read().unfinished():
                return
        raise AssertionError(f"Not settled: {Books.read().unfinished()}")

    def end_of(self, run):
        if Batch.objects.filter(pk=run.claimed.batch_id, cancelled_at__isnull=False).exists() and not run.claimed.event:
            return run.success or outcome_of(run.claimed, Kind.HELD)
        return self.success_of(run, 0)

    def mend_everything(self):
        returned, roots = self.failed_by_their_children(), Batch.objects.filter(parent=None).order_by("pk")
        for root in roots:
            try:
                root.retry_failed(include_cancelled=True)
            except BatchExists:
                root.delete()
        self.settle()
        assert [name(root) for root in roots.all() if root.failed or root.cancelled] == []
        again = BatchJob.objects.filter(pk__in=returned)
        assert dict(again.values_list("pk", "dispatch")) == returned, "a function ran again that had returned"

    def failed_by_their_children(self):
        """Jobs whose functions have returned and are not to run again."""
        failed = BatchJob.objects.filter(waited_at__isnull=False, finished_at__isnull=False, children__isnull=False)
        return dict(failed.values_list("pk", "dispatch"))


@pytest.mark.django_db(transaction=True)
def test_the_books_hold_whatever_happens_in_whatever_order(monkeypatch):
    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    run_state_machine_as_test(
        TheBooks,
        settings=settings(
            max_examples=EXAMPLES or 100,
            stateful_step_count=50 if EXAMPLES else 30,
            derandomize=not EXAMPLES,
            database=settings.default.database if EXAMPLES else None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
        ),
    )
