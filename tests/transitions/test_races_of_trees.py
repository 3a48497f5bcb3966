"""Races in a tree of batches: in any order, no job waits forever, and nothing is called or run twice.

RACE_ROUNDS=2000 for as many rounds of each.
"""

import os
import threading
import time
from dataclasses import dataclass, field
from functools import partial

import pytest

from django_batches import Batch, database
from django_batches.models import BatchJob
from django_batches.states import IN_FLIGHT
from django_batches.transitions import applying, cancelling, children, retrying
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..consistency import Rows, coordinator_turn, drift
from ..road import claim, open_elsewhere, outcome_of
from .children.trees import running_as
from .test_races import record_all, together

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

ROUNDS = int(os.environ.get("RACE_ROUNDS", 100))
CHUNK = 50
"""Trees that are built and raced one after the other, then finished and checked together."""


@dataclass
class Tree:
    root: Batch
    calls: list = field(default_factory=list)
    """The two calls that race."""
    ready: object = None
    """A call just before the race."""
    found: list = field(default_factory=list)
    parts: dict = field(default_factory=dict)


def fill(count=1, **options):
    with Batch.open(**options) as batch:
        for event in ("success", "failure", "finish", "attempted"):
            getattr(batch, f"on_{event}")(tasks.ok_callback)
        batch.map(tasks.ok, range(count))
    return batch


def child_of(job, count=1):
    with running_as(job):
        return fill(count)


def claim_of(*batches):
    """The one job of each batch."""
    claimed = {job.batch_id: job for job in claim()}
    return [claimed[batch.pk] for batch in batches]


def returned(job, child):
    return outcome_of(job, has_children=True, returned=child.pk)


def record_and_tell(*outcomes):
    """As the coordinator, whose next poll handles what is locked now."""
    record_all(list(outcomes))
    children.notify_parents()


def cancel(batch):
    cancelling.cancel(batch.pk, "a mistake")
    children.cancel_children()


def race(prepare, check):
    """Races two calls; now one, now the other begins a little later."""
    for start in range(0, ROUNDS, CHUNK):
        with database.atomic():  # one commit
            trees = [prepare() for _ in range(min(CHUNK, ROUNDS - start))]
        barrier = threading.Barrier(2)
        errors = together(*[partial(side, index, trees, barrier) for index in (0, 1)])
        assert errors == [None, None]
        for tree in trees:
            assert not [result for result in tree.found if isinstance(result, Exception)], tree.found
        with database.atomic():
            settle()
        for tree in trees:
            tree.root.refresh_from_db()
            check(tree)
        rows = Rows.read()
        assert rows.broken() == [] and rows.unfinished() == [] and drift() == {}
        erase()


def side(index, trees, barrier):
    for number, tree in enumerate(trees):
        if index == 0 and tree.ready:
            tree.ready()
        barrier.wait(30)
        if number % 2 == index:
            time.sleep(number % 10 * 0.0005)
        try:
            tree.found.append(tree.calls[index]())
        except Exception as error:
            tree.found.append(error)


def settle():
    """Lets everything that runs succeed."""
    for _ in range(20):
        coordinator_turn()
        claim()
        claim(callbacks=True)
        flying = list(BatchJob.objects.filter(status__in=IN_FLIGHT))
        record_all([outcome_of(job) for job in flying])
        if not flying and not Rows.read().unfinished():
            return


def erase():
    for name in ("TimeBucket", "FailureGroup", "BatchJob", "Batch"):
        database.related(name)._raw_delete(database.alias())


def told(batch):
    return sorted(batch.callbacks.filter(round=batch.round).values_list("event", flat=True))


SUCCEEDED = ["attempted", "finish", "success"]


def dispatches(*jobs):
    found = dict(BatchJob.objects.filter(pk__in=[job.id for job in jobs]).values_list("pk", "dispatch"))
    return [found[job.id] for job in jobs]


def test_two_last_children_that_end_together_end_their_job_once():
    def prepare():
        root = fill()
        (job,) = claim(root)
        one, other = child_of(job), child_of(job)
        applying.record([returned(job, one)])
        calls = [partial(record_and_tell, outcome_of(last)) for last in claim_of(one, other)]
        return Tree(root, calls)

    def check(tree):
        assert tree.root.status == "succeeded" and told(tree.root) == SUCCEEDED
        assert list(tree.root.results()) == [1]

    race(prepare, check)


def test_a_job_that_returns_while_its_child_ends_takes_its_result():
    def prepare():
        root = fill()
        (job,) = claim(root)
        child = child_of(job)
        (last,) = claim(child)
        end, back = outcome_of(last, result='"of the child"'), returned(job, child)
        return Tree(root, [partial(record_and_tell, end), partial(record_and_tell, back)])

    def check(tree):
        assert tree.root.status == "succeeded" and told(tree.root) == SUCCEEDED
        assert tree.root.jobs.get().waited_at

    race(prepare, check)


def test_a_tree_that_is_cancelled_while_it_ends_ends_once():
    def prepare():
        root = fill(2)
        job, other = claim(root)
        child = child_of(job)
        applying.record([returned(job, child), outcome_of(other)])
        (last,) = claim(child)
        return Tree(root, [partial(record_and_tell, outcome_of(last)), partial(cancel, root)], parts={"child": child})

    def check(tree):
        events = {"succeeded": SUCCEEDED, "cancelled": ["attempted", "finish"]}
        assert told(tree.root) == events[tree.root.status]
        assert tree.root.succeeded + tree.root.cancelled == 2

    race(prepare, check)


def test_a_tree_that_is_retried_while_it_ends_succeeds():
    def prepare():
        root = fill(2)
        bad, good = claim(root)
        failing, child = child_of(bad), child_of(good)
        applying.record([returned(bad, failing), returned(good, child)])
        leaf, last = claim_of(failing, child)
        applying.record([outcome_of(leaf, Kind.FAILED)])
        end_callbacks()
        children.notify_parents()
        calls = [partial(record_and_tell, outcome_of(last)), partial(retrying.retry_failed, root.pk)]
        return Tree(root, calls, parts={"once": [bad, good, last], "twice": [leaf]})

    race(prepare, check_that_only_the_leaf_ran_again)


def test_a_child_that_is_retried_while_it_notifies_its_parent_of_its_failure():
    def prepare():
        root = fill()
        (job,) = claim(root)
        child = child_of(job)
        applying.record([returned(job, child)])
        (leaf,) = claim(child)

        def ready():
            applying.record([outcome_of(leaf, Kind.FAILED)])
            end_callbacks()

        calls = [children.notify_parents, partial(retrying.retry_failed, child.pk)]
        return Tree(root, calls, ready, parts={"once": [job], "twice": [leaf]})

    race(prepare, check_that_only_the_leaf_ran_again)


def test_a_retry_of_the_root_and_one_of_the_leaf_share_the_work_without_a_deadlock():
    def prepare():
        root = fill()
        (job,) = claim(root)
        child = child_of(job)
        (inner,) = claim(child)
        leaf_batch = child_of(inner)
        applying.record([returned(job, child), returned(inner, leaf_batch)])
        (leaf,) = claim(leaf_batch)
        applying.record([outcome_of(leaf, Kind.FAILED)])
        for _ in range(2):
            end_callbacks()
            children.notify_parents()
        end_callbacks()
        calls = [partial(retrying.retry_failed, root.pk), partial(retrying.retry_failed, leaf_batch.pk)]
        return Tree(root, calls, parts={"once": [job, inner], "twice": [leaf]})

    race(prepare, check_that_only_the_leaf_ran_again)


def end_callbacks():
    applying.record([outcome_of(callback) for callback in claim(callbacks=True)])


def check_that_only_the_leaf_ran_again(tree):
    assert tree.root.status == "succeeded" and told(tree.root)[-2:] == ["finish", "success"]
    assert dispatches(*tree.parts["once"]) == [1] * len(tree.parts["once"])
    assert dispatches(*tree.parts["twice"]) == [2] * len(tree.parts["twice"])


def test_a_locked_parent_does_not_delay_the_others(monkeypatch):
    """Without the next page, one open transaction stops the notifications in all other trees."""
    monkeypatch.setattr(children, "LIMIT", 2)
    held, free = fill(3), fill(1)
    jobs = claim()
    below = [child_of(job) for job in jobs]
    applying.record([returned(job, child) for job, child in zip(jobs, below, strict=True)])
    applying.record([outcome_of(job) for job in claim()])
    applying.record([outcome_of(job) for job in claim(callbacks=True)])
    with open_elsewhere(lambda: database.lock_batches([held.pk])):
        while children.notify_parents():
            pass
        free.refresh_from_db()
        assert free.status == "succeeded"
