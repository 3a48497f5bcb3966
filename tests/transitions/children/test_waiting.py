"""Jobs that open batches wait for them, take their results, and fail with them."""

from collections import Counter

import pytest

from django_batches import Batch
from django_batches.testing import drain
from django_batches.transitions import applying
from django_batches.transport.outcomes import Outcome

from ... import tasks
from ...road import claim, outcome_of
from .trees import child, open_batch, open_child, returned, run, running_as, settle

pytestmark = pytest.mark.django_db


def test_a_job_that_returns_a_batch_takes_the_result_of_its_success_callback():
    batch = run(tasks.sort, [5, 3, 9, 1, 7])
    assert batch.status == "succeeded"
    assert list(batch.results()) == [[1, 3, 5, 7, 9]]
    assert set(Batch.objects.values_list("status", flat=True)) == {"succeeded"}
    assert Batch.objects.count() == 5


def test_without_a_success_callback_the_result_is_the_list_of_the_results_of_the_jobs():
    assert list(run(tasks.return_child).results()) == [[1, None, "three"]]


def test_a_job_that_opens_a_batch_and_returns_something_else_keeps_its_own_result(ledger):
    batch = run(tasks.open_child, ledger.path)
    assert list(batch.results()) == ["own result"]
    assert child().parent == batch.jobs.get() and child().status == "succeeded"


def test_a_job_waits_until_its_child_and_its_callbacks_have_ended():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    with running_as(job), Batch.open("child") as opened:
        opened.on_finish(tasks.ok_callback)
        opened.enqueue(tasks.ok)
    applying.record([returned(job)])
    row = batch.jobs.get()
    assert (row.status, row.attempts, row.finished_at, row.result) == ("waiting", 1, None, 1)
    (below,) = claim(opened)
    applying.record([outcome_of(below)])
    settle()
    batch.refresh_from_db()
    assert (child().status, batch.status, batch.pending, batch.in_flight) == ("succeeded", "running", 1, 0)
    (callback,) = claim(callbacks=True)
    assert applying.record([outcome_of(callback)]).is_for_parents
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.jobs.get().status, batch.jobs.get().result) == ("succeeded", "succeeded", 1)


def test_a_child_that_ends_before_its_job_returns_notifies_it_afterwards():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    applying.record([outcome_of(below) for below in claim(opened)])
    settle()
    assert (Batch.objects.get(pk=opened.pk).is_awaited, batch.jobs.get().status) == (True, "queued")
    assert applying.record([returned(job)]).is_for_parents
    settle()
    assert (batch.jobs.get().status, Batch.objects.get(pk=opened.pk).is_awaited) == ("succeeded", False)


def test_a_waiting_job_does_not_count_towards_concurrency():
    with Batch.open(concurrency=1) as batch:
        batch.map(tasks.ok, range(2))
    (job,) = claim(batch)
    open_child(job)
    applying.record([returned(job)])
    assert len(claim(batch)) == 1


def test_a_child_uses_the_queue_of_its_parent_by_default(ledger):
    run(tasks.open_child, ledger.path, queue="images")
    assert child().queue == "images"
    assert set(child().jobs.values_list("queue", flat=True)) == {"images"}


def test_a_detached_batch_has_no_parent(ledger):
    batch = run(tasks.detach)
    detached = Batch.objects.exclude(pk=batch.pk).get()
    assert (detached.parent, detached.status, batch.status) == (None, "failed", "succeeded")


@pytest.mark.parametrize("parent", ["job", 7, True])
def test_parent_is_the_running_job_or_none(parent):
    with pytest.raises(TypeError, match="omit it"):
        Batch.open(parent=parent)


@pytest.mark.parametrize("kind", ["own", "detached", "foreign", "rolled back"])
def test_returning_a_batch_that_is_no_child_of_this_run_fails_clearly_and_for_good(kind):
    if kind == "foreign":
        open_batch(tasks.ok)
    batch = run(tasks.return_which, kind, max_attempts=5)
    job = batch.jobs.get()
    assert (job.status, job.attempts) == ("failed", 1)
    assert "is not a child of this run" in job.error


def test_a_returned_child_that_was_rolled_back_afterwards_fails_the_job_with_the_reason():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    opened.jobs.all()._raw_delete("default")
    Batch.objects.filter(pk=opened.pk)._raw_delete("default")
    applying.record([returned(job, opened)])
    assert batch.jobs.get().status == "failed"
    assert "was rolled back with the job's transaction" in batch.jobs.get().error


def test_a_child_without_jobs_ends_at_once_and_its_callbacks_run(ledger):
    batch = run(tasks.empty_child)
    assert batch.status == "succeeded"
    assert batch.jobs.get().result[2] == "success"


def test_an_empty_block_that_raises_leaves_no_awaited_child():
    batch = run(tasks.raise_in_block)
    assert (batch.status, batch.jobs.get().result, Batch.objects.count()) == ("succeeded", "went on", 1)


def test_a_job_whose_child_fails_is_not_tried_again(ledger):
    batch = run(tasks.open_child, ledger.path, "tests.tasks.boom", max_attempts=5)
    job = batch.jobs.get()
    assert (job.status, job.attempts, batch.status) == ("failed", 1, "failed")
    assert job.error == "Its child batch “child” failed."
    assert ledger.lines == ["child:failed:0/2"]
    assert batch.failure_groups.get().count == 1


def test_only_the_job_that_fails_uses_attempts_and_none_above_it(ledger, broken):
    batch = run(tasks.descend, ledger.path, 4, 1, str(broken), max_attempts=5)
    runs = Counter(ledger.lines)
    assert runs == {"run 0": 5, "run 1": 1, "run 2": 1, "run 3": 1, "run 4": 1}
    assert batch.status == "failed"


def test_a_failed_success_callback_of_the_child_fails_the_job_and_not_the_child():
    batch = run(tasks.child_with_callback, "success", "tests.tasks.boom_callback")
    assert (child().status, batch.jobs.get().status) == ("succeeded", "failed")
    assert batch.jobs.get().error == "The success callback of its child batch “child” failed."


def test_other_failed_callbacks_of_the_child_do_not_fail_the_job():
    batch = run(tasks.child_with_callback, "finish", "tests.tasks.boom_callback")
    assert (child().callbacks.get().status, batch.status) == ("failed", "succeeded")
    assert child().retry_failed() == 1
    assert batch.jobs.get().status == "succeeded"
    drain(raise_failures=False)


def test_results_above_the_limit_fail_the_job_and_a_retry_measures_them_again(settings):
    settings.DJANGO_BATCHES = {**settings.DJANGO_BATCHES, "MAX_PAYLOAD": 2_000}
    batch = run(tasks.return_large_child, 1_000)
    assert "Give the child batch an on_success callback" in batch.jobs.get().error
    settings.DJANGO_BATCHES = {**settings.DJANGO_BATCHES, "MAX_PAYLOAD": 4_000}
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, [len(text) for text in batch.result[0]]) == ("succeeded", [1_000] * 3)
    assert child().round == 0


def test_a_job_that_waits_for_the_first_stage_waits_for_the_last(ledger):
    with Batch.open("first stage") as batch:
        batch.on_success(tasks.next_stage, ledger.path, 3)
        batch.map(tasks.ok, range(2))
    drain()
    assert ledger.lines == ["stage 3", "stage 2", "stage 1", "stage 0"]
    batch.refresh_from_db()
    assert (batch.status, batch.open_callbacks, batch.result) == ("succeeded", 0, "report")
    assert [b.parent.event for b in Batch.objects.exclude(pk=batch.pk)] == ["success"] * 3


def test_a_callback_that_waits_for_children_stays_open(ledger):
    with Batch.open() as batch:
        batch.on_success(tasks.ok_callback)
    (callback,) = claim(callbacks=True)
    opened = open_child(callback)
    applying.record([returned(callback, opened)])
    batch.refresh_from_db()
    assert (batch.status, batch.open_callbacks, batch.result) == ("succeeded", 1, None)
    applying.record([outcome_of(below) for below in claim(opened)])
    settle()
    batch.refresh_from_db()
    assert (batch.open_callbacks, batch.result) == (0, [1])


def test_a_callback_of_a_child_adds_to_the_batch_above():
    batch = run(tasks.child_with_callback, "success", "tests.tasks.add_to_parent")
    assert (batch.total, batch.succeeded, batch.status) == (2, 2, "succeeded")


def test_a_job_that_fails_because_of_its_child_counts_towards_max_failures(ledger):
    with Batch.open(max_failures=0) as batch:
        batch.enqueue(tasks.open_child, ledger.path, "tests.tasks.boom")
        batch.using(run_after=3600).enqueue(tasks.ok)
    drain(raise_failures=False)
    batch.refresh_from_db()
    assert (batch.status, batch.failed, batch.cancelled) == ("failed", 1, 1)


def test_a_waiting_job_counts_as_attempted():
    with Batch.open() as batch:
        batch.on_attempted(tasks.ok_callback)
        batch.enqueue(tasks.ok)
    (job,) = claim(batch)
    open_child(job)
    applying.record([returned(job)])
    assert batch.callbacks.get().event == "attempted"


def test_a_tree_of_depth_twelve_calls_each_callback_once(ledger):
    batch = run(tasks.descend, ledger.path, 12)
    assert batch.result == [1]
    assert Counter(ledger.lines) == Counter(
        [*(f"run {depth}" for depth in range(13)), *(f"callback {depth}" for depth in range(1, 13))]
    )


@pytest.mark.slow
def test_a_job_with_a_thousand_children_waits_for_them_all():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    with running_as(job):
        for _ in range(1_000):
            with Batch.open("child") as opened:
                opened.on_success(tasks.ok_callback)
                opened.enqueue(tasks.ok)
    applying.record([returned(job)])
    drain()
    batch.refresh_from_db()
    assert batch.status == "succeeded"
    assert Counter(Batch.objects.filter(description="child").values_list("status", "callbacks__status")) == {
        ("succeeded", "succeeded"): 1_000
    }


def test_drifted_counters_do_not_stop_the_notification_of_parents(caplog):
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    applying.record([returned(job)])
    applying.record([outcome_of(below) for below in claim(opened)])
    Batch.objects.filter(pk=batch.pk).update(pending=0, succeeded=1)
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.pending, batch.succeeded) == ("succeeded", 0, 1)
    assert "differ from its rows" in caplog.text


def test_outcomes_contain_the_batches_that_the_run_opened():
    job = claim(open_batch(tasks.ok))[0]
    opened = open_child(job)
    outcome = returned(job, opened)
    assert Outcome.loads(outcome.dumps()) == outcome
    assert (Outcome.loads(outcome.dumps()).has_children, Outcome.loads(outcome.dumps()).returned) == (True, opened.pk)
