"""Adding, running, failing, killing, retrying, cancelling, pausing, children, doubled and late outcomes in any order.

Hypothesis chooses what happens next and shrinks what breaks a rule of `consistency`. Every example is rolled back.
STATEFUL_EXAMPLES=5000 looks for longer, and at other orders each time.
"""

import os
import sys
from contextvars import copy_context
from datetime import timedelta
from functools import partial

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from django_batches import Batch
from django_batches.exceptions import BatchError, BatchExists, BatchFinished
from django_batches.models import BatchJob
from django_batches.models.context import Running, running
from django_batches.states import IN_FLIGHT, WAITING_HERE
from django_batches.transitions import applying, cancelling, children, claiming, deleting, retrying
from django_batches.transitions.frontier import Frontier, queues as queues_with_jobs
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..consistency import EVENTS, Rows, aggregates_broken, coordinator_turn, drift, name
from ..road import claim, outcome_of

EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", 0))
SKIPPED = os.environ.get("STATEFUL_SKIP", "").split(",")
OWN = [Kind.FAILED, Kind.FAILED, Kind.RETRY, Kind.CANCELLED, Kind.MISSING]
FOREIGN = [Kind.KILLED, Kind.INTERRUPTED, Kind.TIMEOUT, Kind.VANISHED, Kind.STOPPED, Kind.ON_HOLD]
"""Outcomes that others report for a run, which may continue."""
LONG = timedelta(days=1)


def promote():
    claiming.promote_due(lambda: timezone.now() + LONG)


PARTS = [children.notify_parents, children.cancel_orphans, children.cancel_children, retrying.continue_retries, promote]
"""The steps of the coordinator, which may come between any others."""


class Run:
    """A dispatch of a job, as a worker has it."""

    def __init__(self, claimed, label):
        self.claimed, self.label = claimed, label
        self.running = Running(claimed.id, claimed.batch_id, claimed.dispatch, bool(claimed.event))
        self.success = None
        """The outcome it reported; a second report is the same."""
        self.has_left = False

    def __repr__(self):
        return f"<{self.label}>"

    def call(self, function):
        """As code inside the job."""

        def inside():
            running.set(self.running)
            return function()

        return copy_context().run(inside)

    def succeed(self, returns=0):
        """Its success, with the child it returns, if so many are awaited."""
        self.has_left = True
        if self.success is None:
            opened = self.running.children
            awaited = [key for key in opened if Batch.objects.filter(pk=key, is_awaited=True).exists()]
            returned = awaited[returns] if returns < len(awaited) else None
            self.success = outcome_of(self.claimed, has_children=bool(opened), returned=returned)
        return self.success


class Transitions(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.batches = {}
        self.runs = {}
        self.live = []
        """Runs without a reported outcome."""
        self.left = []
        self.succeeded = {}
        self.frontiers = {}

    def teardown(self):
        try:
            if sys.exception() is None:
                self.settle_everything()
        finally:
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)

    def draw(self, data, choices, label):
        return data.draw(st.sampled_from(list(choices)), label)

    def draw_batch(self, data):
        return self.batches[self.draw(data, self.batches, "batch")]

    # Adding

    options = st.fixed_dictionaries(
        {},
        optional={
            "max_attempts": st.just(2),
            "concurrency": st.just(1),
            "max_failures": st.integers(0, 1),
            "key": st.just("k"),
        },
    )
    events = st.lists(st.sampled_from(EVENTS), max_size=4, unique=True)
    sizes = st.integers(0, 2)

    def open(self, options, events, size, sealed):
        block = Batch.open(f"B{len(self.batches) + 1}", **options)
        batch = block.__enter__()
        for event in events:
            getattr(batch, f"on_{event}")(tasks.ok_callback)
        batch.map(tasks.ok, range(size))
        block.seal() if sealed else block.flush()
        self.batches[batch.description] = batch.pk
        return batch

    @initialize(levels=st.lists(st.booleans(), max_size=3), options=options, events=events, seen=st.booleans())
    def begin_with_a_tree(self, levels, options, events, seen):
        """A tree in which a job of each level has opened a batch, and has returned or still runs."""
        batch = self.open({}, events, 2, True)
        for has_returned in levels:
            self.claim_all(seen)
            run = next(run for run in self.live if run.claimed.batch_id == batch.pk)
            batch = run.call(partial(self.open, options, events, 2, True))
            options = options | {"key": None}
            if has_returned:
                self.leave(run)
                self.tell(run.succeed())
        self.claim_all(seen)

    @rule(options=options, events=events, size=sizes, sealed=st.booleans())
    def open_batch(self, options, events, size, sealed):
        try:
            self.open(options, events, size, sealed)
        except BatchExists:
            assert Batch.objects.filter(key="k", finished_at=None).count() == 1

    @precondition(lambda self: self.live or self.left)
    @rule(data=st.data(), options=options, events=events, size=sizes, sealed=st.sampled_from([True, True, False]))
    def open_child(self, data, options, events, size, sealed):
        runs = self.live + [run for run in self.left if not run.has_left]
        if not runs:
            return
        run = self.draw(data, runs, "run")
        job = BatchJob.objects.filter(pk=run.claimed.id).first()
        counts = job and job.dispatch == run.claimed.dispatch and job.status in IN_FLIGHT
        try:
            run.call(lambda: self.open(options, events, size, sealed))
            assert counts
        except BatchExists:
            pass
        except BatchFinished:
            assert not counts or Batch.objects.get(pk=run.claimed.batch_id).cancelled_at

    @rule(data=st.data(), size=st.integers(0, 2))
    def grow_or_seal(self, data, size):
        batch = Batch.objects.filter(pk=self.draw_batch(data)).first()
        if batch is None:
            return
        takes = not (batch.finished_at or batch.cancelled_at)
        try:
            batch.map(tasks.ok, range(size)) if size else batch.seal()
            assert takes or not size
        except BatchFinished:
            assert not takes

    # Running

    @rule(limit=st.integers(1, 4), restarts=st.booleans())
    def claim(self, limit, restarts):
        for queue in queues_with_jobs():
            frontier = self.frontiers.setdefault(queue, Frontier())
            if restarts:
                frontier.restart()
            self.start(claiming.claim_jobs(queue, limit, timezone.now, frontier))
        self.start(claiming.claim_callbacks(limit, timezone.now))

    @rule(seen=st.booleans())
    def claim_all(self, seen=False):
        self.start(claim())
        self.start(claim(callbacks=True))
        if seen:
            leases = [(run.claimed.id, run.claimed.dispatch, timezone.now(), "worker") for run in self.live]
            claiming.mark_running(leases, timezone.now)

    def start(self, claimed):
        for job in claimed:
            execution = job.id, job.dispatch
            assert execution not in self.runs
            self.runs[execution] = run = Run(job, name(Rows.read().jobs[job.id]))
            self.live.append(run)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), returns=st.integers(0, 1))
    def succeed(self, data, returns):
        run = self.draw(data, self.live, "run")
        self.leave(run)
        self.tell(run.succeed(returns))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), kind=st.sampled_from(OWN), is_final=st.booleans())
    def fail(self, data, kind, is_final):
        run = self.draw(data, self.live, "run")
        run.has_left = True
        self.leave(run)
        self.tell(self.outcome(run, kind, is_final))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), kind=st.sampled_from(FOREIGN))
    def give_up(self, data, kind):
        self.give_up_run(self.draw(data, self.live, "run"), kind)

    def give_up_run(self, run, kind):
        self.leave(run)
        self.tell(outcome_of(run.claimed, kind))

    @precondition(lambda self: self.live)
    @rule(kind=st.sampled_from([Kind.SUCCEEDED, Kind.FAILED]))
    def all_end(self, kind):
        self.tell(*[run.succeed() if kind == Kind.SUCCEEDED else self.outcome(run, kind, True) for run in self.live])
        for run in [*self.live]:
            run.has_left = True
            self.leave(run)

    @rule(jobs=st.sampled_from([Kind.SUCCEEDED, Kind.FAILED]), callbacks=st.sampled_from([Kind.SUCCEEDED, Kind.FAILED]))
    def come_to_rest(self, jobs, callbacks):
        """Ends all runs with this kind of outcome."""
        for _ in range(20):
            coordinator_turn()
            self.claim_all()
            if not self.live:
                return
            kinds = [(run, callbacks if run.claimed.event else jobs) for run in self.live]
            self.tell(*[run.succeed() if k == Kind.SUCCEEDED else self.outcome(run, k, True) for run, k in kinds])
            for run, _ in kinds:
                run.has_left = True
                self.leave(run)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), kind=st.sampled_from([Kind.INTERRUPTED, Kind.VANISHED]))
    def start_again(self, data, kind):
        """A worker is considered lost, and another one starts the job."""
        self.give_up_run(self.draw(data, self.live, "run"), kind)
        self.claim_all()

    @property
    def superseded(self):
        """Superseded runs, beside another run of their job."""
        others = {run.claimed.id for run in self.live}
        return [run for run in self.left if not run.has_left and run.claimed.id in others]

    @precondition(lambda self: self.left)
    @rule(data=st.data(), kind=st.sampled_from([*[Kind.SUCCEEDED] * 9, *OWN, *FOREIGN]))
    def report_late(self, data, kind):
        """A second outcome of a run: a duplicate, or from a worker that was considered lost."""
        run = self.draw(data, self.superseded or self.left, "run")
        if kind != Kind.SUCCEEDED:
            self.tell(self.outcome(run, kind, False))
        elif run.success or not run.has_left:
            self.tell(run.succeed())

    @precondition(lambda self: self.live)
    @rule(data=st.data(), kind=st.sampled_from(FOREIGN))
    def report_in_one_chunk(self, data, kind):
        """A success and a loss of one run, and a duplicate outcome of another, in one transaction."""
        run = self.draw(data, self.live, "run")
        again = [other.success for other in self.left if other.success][-2:]
        self.leave(run)
        self.tell(run.succeed(), outcome_of(run.claimed, kind), *again)

    def leave(self, run):
        self.live.remove(run)
        self.left.append(run)

    def outcome(self, run, kind, is_final):
        fields = {"retry_max": 1, "retry_after": 0.0} if kind == Kind.RETRY else {"is_final": is_final}
        return outcome_of(run.claimed, kind, **fields)

    def tell(self, *outcomes):
        assert not applying.record(outcomes).postponed

    # Verbs

    @rule(data=st.data(), verb=st.sampled_from([cancelling.cancel, cancelling.pause, cancelling.resume]))
    def steer(self, data, verb):
        verb(self.draw_batch(data))

    @rule(data=st.data(), include_cancelled=st.booleans())
    def retry_failed(self, data, include_cancelled):
        ended_badly = Batch.objects.filter(status__in=["failed", "cancelled"], finished_at__isnull=False)
        found = dict(ended_badly.order_by("pk").values_list("description", "pk")) or self.batches
        key = found[self.draw(data, found, "batch")]
        self.or_nothing(lambda: retrying.retry_failed(key, include_cancelled))

    @rule(data=st.data(), verb=st.sampled_from(["retry", "cancel"]), callback=st.booleans())
    def act_on_a_job(self, data, verb, callback):
        statuses = WAITING_HERE if verb == "cancel" else ["failed", "cancelled"]
        jobs = list(BatchJob.objects.filter(status__in=statuses, batch__isnull=callback).order_by("pk"))
        if callback and verb == "cancel":
            for job in jobs:
                assert job.cancel()
        elif jobs:
            job = self.draw(data, jobs, "job")
            assert self.or_nothing(getattr(job, verb)) in (True, None)

    @rule(data=st.data(), dies=st.booleans())
    def delete(self, data, dies):
        """Also by a process that dies right after it has marked the batch."""
        key = self.draw_batch(data)
        if dies:
            self.or_nothing(lambda: deleting.begin_deletion(key))
        else:
            self.or_nothing(lambda: Batch.objects.filter(pk=key).delete())

    def or_nothing(self, verb):
        """The return value of the verb; checks that a refusal changes nothing."""
        before = Rows.read()
        try:
            return verb()
        except BatchError as error:
            assert Rows.read() == before, f"refused, and yet changed: {error}"
            assert "locked by another transaction" not in str(error)

    # The coordinator, step by step in any order

    @rule(part=st.sampled_from(PARTS))
    def coordinator_step(self, part):
        part()

    @rule()
    def whole_coordinator_turn(self):
        coordinator_turn()
        rows = Rows.read()
        for batch in rows.batches.values():
            if not batch.is_awaited:
                continue
            parent = rows.jobs[batch.parent_id]
            assert (parent.id, parent.dispatch) == (batch.parent_id, batch.parent_dispatch), name(batch)
            assert parent.status in (*IN_FLIGHT, "waiting"), name(batch)
            owner = rows.batches.get(parent.batch_id)
            is_cancelled = owner and owner.cancelled_at and not owner.finished_at
            assert not is_cancelled or batch.cancelled_at or batch.finished_at, name(batch)

    # The rules

    @invariant()
    def the_rules_hold(self):
        rows = Rows.read()
        assert rows.broken() == []
        for key, result in self.succeeded.items():
            job = rows.jobs.get(key)
            assert job is None or (job.status, job.result_text) == ("succeeded", result), name(job)
        self.succeeded = {key: job.result_text for key, job in rows.jobs.items() if job.status == "succeeded"}

    def settle_everything(self):
        """Everything that runs succeeds, then all has ended; a retry of the roots then repairs all failures."""
        cancelling.cancel_abandoned(timezone.now() + LONG, 0)
        self.settle()
        self.mend_everything()
        assert drift() == {}
        assert aggregates_broken() == []

    def settle(self):
        for batch in Batch.objects.filter(is_paused=True):
            batch.resume()
        for _ in range(50):
            promote()
            coordinator_turn()
            self.claim_all()
            flying = BatchJob.objects.filter(status__in=IN_FLIGHT).order_by("pk").values_list("pk", "dispatch")
            if flying:
                self.tell(*[self.end_of(self.runs[execution]) for execution in flying])
            self.the_rules_hold()
            if not flying and not Rows.read().unfinished():
                return
        raise AssertionError(f"Not settled: {Rows.read().unfinished()}")

    def end_of(self, run):
        is_job = not run.claimed.event
        if run.success is None and is_job and Batch.objects.get(pk=run.claimed.batch_id).cancelled_at:
            return outcome_of(run.claimed, Kind.ON_HOLD)
        return run.succeed()

    def mend_everything(self):
        returned = self.failed_by_their_children()
        roots = Batch.objects.filter(parent=None).order_by("pk")
        # A job two of whose children have one key succeeds in the second round.
        for _ in range(2 if Batch.objects.filter(key="k").count() > 1 else 1):
            for root in roots:
                try:
                    root.retry_failed(include_cancelled=True)
                except BatchExists:
                    root.delete()
            self.settle()
        assert [name(root) for root in roots.all() if root.failed or root.cancelled] == []
        again = BatchJob.objects.filter(pk__in=returned)
        assert all(dispatch == returned[key] for key, dispatch in again.values_list("pk", "dispatch"))

    def failed_by_their_children(self):
        """Jobs whose functions have returned and are not to run again."""
        failed = BatchJob.objects.filter(waited_at__isnull=False, finished_at__isnull=False, children__isnull=False)
        return dict(failed.values_list("pk", "dispatch"))


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_the_invariants_hold_after_any_sequence_of_steps(monkeypatch):
    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    run_state_machine_as_test(
        Transitions,
        settings=settings(
            max_examples=EXAMPLES or 150,
            stateful_step_count=40 if EXAMPLES else 15,
            derandomize=not EXAMPLES,
            database=settings.default.database if EXAMPLES else None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=[phase for phase in Phase if phase.name not in SKIPPED],
        ),
    )
