"""Child batches: jobs that open batches, wait for them, take their results, and fail and are retried with them."""

from collections import Counter
from contextlib import contextmanager

import pytest

from django_batches import Batch
from django_batches.context import Running, running
from django_batches.exceptions import BatchCancelled, BatchError, BatchFinished
from django_batches.models import BatchJob
from django_batches.outcomes import Kind, Outcome
from django_batches.testing import drain
from django_batches.transitions import children, recording, repairing, retrying, steering

from . import tasks
from .road import claim, outcome_of

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def books_that_add_up():
    yield
    assert [repairing.drift(batch.pk) for batch in Batch.objects.all()] == [{}] * Batch.objects.count()
    assert not Batch.objects.filter(is_awaited=True, finished_at__isnull=False, parent__status="waiting").exists()


@pytest.fixture
def broken(tmp_path):
    """A file; as long as it exists, what looks at it fails."""
    path = tmp_path / "broken"
    path.touch()
    return path


def open_batch(func, *args, **options):
    with Batch.open("root", **options) as batch:
        batch.on_finish(tasks.ok_callback)
        batch.enqueue(func, *args)
    return batch


def run(func, *args, **options):
    batch = open_batch(func, *args, **options)
    drain(raise_failures=False)
    batch.refresh_from_db()
    return batch


@contextmanager
def running_as(job):
    """In the block this is the run of a claimed job."""
    run = Running(job.id, job.batch_id, job.dispatch, bool(job.event))
    token = running.set(run)
    try:
        yield run
    finally:
        running.reset(token)


def open_child(job, count=1, **options):
    """As the claimed job would do it: a sealed child batch."""
    with running_as(job), Batch.open("child", **options) as child:
        child.map(tasks.ok, range(count))
    return child


def returned(job, child=None):
    """The outcome of a claimed job that has opened a child, which it may return."""
    return outcome_of(job, result=None if child else "1", has_children=True, returned=child.pk if child else None)


def settle():
    """What the coordinator does after outcomes."""
    children.cancel_orphans()
    children.carry_cancels_down()
    retrying.carry_all_on()
    while children.tell_parents():
        pass


def child():
    return Batch.objects.get(description="child")


def test_a_job_that_returns_a_batch_has_the_return_value_of_its_success_callback():
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


def test_a_job_waits_until_its_child_and_the_callbacks_of_it_have_ended():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    with running_as(job), Batch.open("child") as opened:
        opened.on_finish(tasks.ok_callback)
        opened.enqueue(tasks.ok)
    recording.record([returned(job)])
    row = batch.jobs.get()
    assert (row.status, row.attempts, row.finished_at, row.result) == ("waiting", 1, None, 1)
    (below,) = claim(opened)
    recording.record([outcome_of(below)])
    settle()
    batch.refresh_from_db()
    assert (child().status, batch.status, batch.pending, batch.in_flight) == ("succeeded", "running", 1, 0)
    (callback,) = claim(callbacks=True)
    assert recording.record([outcome_of(callback)]).is_for_parents
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.jobs.get().status, batch.jobs.get().result) == ("succeeded", "succeeded", 1)


def test_a_child_that_ends_before_its_job_returns_is_told_afterwards():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    recording.record([outcome_of(below) for below in claim(opened)])
    settle()
    assert (Batch.objects.get(pk=opened.pk).is_awaited, batch.jobs.get().status) == (True, "queued")
    assert recording.record([returned(job)]).is_for_parents
    settle()
    assert (batch.jobs.get().status, Batch.objects.get(pk=opened.pk).is_awaited) == ("succeeded", False)


def test_a_waiting_job_holds_no_place_of_its_batch():
    with Batch.open(concurrency=1) as batch:
        batch.map(tasks.ok, range(2))
    (job,) = claim(batch)
    open_child(job)
    recording.record([returned(job)])
    assert len(claim(batch)) == 1


def test_a_child_runs_on_the_queue_of_its_parent_unless_it_names_one(ledger):
    run(tasks.open_child, ledger.path, queue="images")
    assert child().queue == "images"
    assert set(child().jobs.values_list("queue", flat=True)) == {"images"}


def test_a_detached_batch_is_nobodys_child(ledger):
    batch = run(tasks.detach)
    detached = Batch.objects.exclude(pk=batch.pk).get()
    assert (detached.parent, detached.status, batch.status) == (None, "failed", "succeeded")


@pytest.mark.parametrize("parent", ["job", 7, True])
def test_parent_is_the_running_job_or_none(parent):
    with pytest.raises(TypeError, match="must be left out"):
        Batch.open(parent=parent)


@pytest.mark.parametrize("kind", ["own", "detached", "foreign", "rolled back"])
def test_returning_a_batch_that_is_no_child_of_this_run_fails_clearly_and_for_good(kind):
    if kind == "foreign":
        open_batch(tasks.ok)
    batch = run(tasks.return_which, kind, max_attempts=5)
    job = batch.jobs.get()
    assert (job.status, job.attempts) == ("failed", 1)
    assert "is no child of this run" in job.error


def test_a_returned_child_that_was_rolled_back_afterwards_fails_the_job_with_the_reason():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    opened.jobs.all()._raw_delete("default")
    Batch.objects.filter(pk=opened.pk)._raw_delete("default")
    recording.record([returned(job, opened)])
    assert batch.jobs.get().status == "failed"
    assert "was rolled back with the job's transaction" in batch.jobs.get().error


def test_a_child_without_jobs_ends_at_once_and_its_callbacks_run(ledger):
    batch = run(tasks.empty_child)
    assert batch.status == "succeeded"
    assert batch.jobs.get().result[2] == "success"


def test_a_block_that_raised_before_anything_was_added_leaves_nothing_to_wait_for():
    batch = run(tasks.raise_in_block)
    assert (batch.status, batch.jobs.get().result, Batch.objects.count()) == ("succeeded", "went on", 1)


def test_a_job_whose_child_failed_has_failed_for_good_whatever_its_attempts(ledger):
    batch = run(tasks.open_child, ledger.path, "tests.tasks.boom", max_attempts=5)
    job = batch.jobs.get()
    assert (job.status, job.attempts, batch.status) == ("failed", 1, "failed")
    assert job.error == "Its child batch “child” failed."
    assert ledger.lines == ["child:failed:0/2"]
    assert batch.failure_groups.get().count == 1


def test_attempts_are_spent_where_the_failure_is_and_nowhere_above(ledger, broken):
    batch = run(tasks.descend, ledger.path, 4, 1, str(broken), max_attempts=5)
    runs = Counter(ledger.lines)
    assert runs == {"run 0": 5, "run 1": 1, "run 2": 1, "run 3": 1, "run 4": 1}
    assert batch.status == "failed"


def test_one_retry_of_the_root_runs_the_leaf_and_the_callbacks_above_it(ledger, broken):
    batch = run(tasks.descend, ledger.path, 4, 1, str(broken), max_attempts=5)
    before = len(ledger.lines)
    broken.unlink()
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.result) == ("succeeded", [1])
    assert ledger.lines[before:] == ["run 0", *(f"callback {depth}" for depth in (1, 2, 3, 4))]
    assert set(Batch.objects.values_list("status", "round")) == {("succeeded", 1)}


def test_a_retry_of_the_leaf_opens_every_batch_above_it_again(ledger, broken):
    batch = run(tasks.descend, ledger.path, 3, 1, str(broken))
    leaf = BatchJob.objects.get(status="failed", waited_at=None)
    broken.unlink()
    assert leaf.retry()
    batch.refresh_from_db()
    assert (batch.status, batch.round, batch.jobs.get().status) == ("running", 1, "waiting")
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.result) == ("succeeded", [1])


def test_a_retry_of_the_child_alone_repairs_its_parent(ledger, broken):
    batch = run(tasks.descend, ledger.path, 2, 2, str(broken))
    broken.unlink()
    for below in Batch.objects.filter(description="depth 1"):
        assert below.retry_failed() == 2
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.result) == ("succeeded", [4])
    assert Counter(ledger.lines)["run 1"] == 2


def test_a_retry_that_fails_again_fails_the_tree_again(ledger, broken):
    batch = run(tasks.descend, ledger.path, 3, 1, str(broken))
    batch.retry_failed()
    drain(raise_failures=False)
    batch.refresh_from_db()
    assert (batch.status, batch.round, batch.failed) == ("failed", 1, 1)
    assert batch.failure_groups.get().count == 1
    assert Counter(ledger.lines) == {"run 0": 2, "run 1": 1, "run 2": 1, "run 3": 1}


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


def test_a_retry_goes_down_to_a_failed_success_callback_and_brings_its_later_result(broken):
    batch = run(tasks.return_child_with, str(broken))
    assert batch.status == "failed"
    broken.unlink()
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.result, child().round) == ("succeeded", ["mended"], 0)


def test_a_retried_callback_of_the_child_opens_the_batch_above_again(broken):
    batch = run(tasks.return_child_with, str(broken))
    broken.unlink()
    assert child().callbacks.get().retry()
    batch.refresh_from_db()
    assert (batch.status, batch.jobs.get().status) == ("running", "waiting")
    drain()
    batch.refresh_from_db()
    assert batch.result == ["mended"]


def test_results_above_the_limit_fail_the_job_and_a_retry_looks_again(settings):
    settings.DJANGO_BATCHES = {**settings.DJANGO_BATCHES, "MAX_PAYLOAD": 2_000}
    batch = run(tasks.return_large_child, 1_000)
    assert "give it an on_success callback" in batch.jobs.get().error
    settings.DJANGO_BATCHES = {**settings.DJANGO_BATCHES, "MAX_PAYLOAD": 4_000}
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, [len(text) for text in batch.result[0]]) == ("succeeded", [1_000] * 3)
    assert child().round == 0


def test_a_killed_attempt_that_had_sealed_a_child_leaves_no_orphan_running():
    with Batch.open(max_attempts=2) as batch:
        batch.enqueue(tasks.ok)
    (job,) = claim(batch)
    orphan = open_child(job, 3)
    claim(orphan)
    recorded = recording.record([outcome_of(job, Kind.KILLED)])
    assert recorded.given_up == [job.id]
    children.cancel_orphans(recorded.given_up)
    orphan.refresh_from_db()
    assert orphan.cancelled_at and not orphan.is_awaited
    (again,) = claim(batch)
    second = open_child(again)
    recording.record([returned(again, second)])
    recording.record([outcome_of(below) for below in claim(second)])
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.result) == ("succeeded", [[1]])


def test_an_attempt_killed_inside_the_block_leaves_nothing_open_and_nothing_to_wait_for():
    with Batch.open(max_attempts=2) as batch:
        batch.enqueue(tasks.ok)
    (job,) = claim(batch)
    with running_as(job):
        opening = Batch.open("child")
        orphan = opening.__enter__()
        orphan.enqueue(tasks.ok)
        opening.flush()
    recording.record([outcome_of(job, Kind.KILLED)])
    settle()
    orphan.refresh_from_db()
    assert (orphan.status, orphan.is_awaited) == ("cancelled", False)
    (again,) = claim(batch)
    recording.record([outcome_of(again)])
    batch.refresh_from_db()
    assert batch.status == "succeeded"
    with pytest.raises(BatchCancelled):
        opening.seal() or (opening.batch.enqueue(tasks.ok) and opening.flush())


def test_a_run_that_was_given_up_opens_no_child():
    batch = open_batch(tasks.ok)
    (old,) = claim(batch)
    recording.record([outcome_of(old, Kind.INTERRUPTED)])
    claim(batch)
    with running_as(old), pytest.raises(BatchFinished, match="does not count any more"), Batch.open():
        pass
    assert Batch.objects.count() == 1


def test_a_job_of_a_cancelled_batch_opens_no_child():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    batch.cancel()
    with running_as(job), pytest.raises(BatchCancelled), Batch.open():
        pass


def test_a_late_success_whose_children_were_cancelled_does_not_count():
    batch = open_batch(tasks.ok)
    (old,) = claim(batch)
    orphan = open_child(old)
    recording.record([outcome_of(old, Kind.INTERRUPTED)])
    settle()
    (new,) = claim(batch)
    recording.record([returned(old, orphan)])
    assert batch.jobs.get().status == "queued"
    recording.record([outcome_of(new)])
    assert batch.jobs.get().status == "succeeded"


def test_a_late_success_wins_over_a_run_that_waits_and_its_children_are_cancelled():
    batch = open_batch(tasks.ok)
    (old,) = claim(batch)
    recording.record([outcome_of(old, Kind.INTERRUPTED)])
    (new,) = claim(batch)
    opened = open_child(new)
    recording.record([returned(new, opened)])
    recorded = recording.record([outcome_of(old)])
    children.cancel_orphans(recorded.given_up)
    opened.refresh_from_db()
    assert (batch.jobs.get().status, opened.status, opened.is_awaited) == ("succeeded", "cancelled", False)


def test_a_cancel_goes_down_the_tree_and_the_waiting_jobs_end_with_it():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job, 2)
    recording.record([returned(job)])
    (below, _) = claim(opened)
    grandchild = open_child(below)
    recording.record([returned(below)])
    batch.cancel("enough")
    settle()
    for one in (opened, grandchild):
        one.refresh_from_db()
        assert one.cancelled_at
    batch.refresh_from_db()
    assert batch.pending == 1  # the other job of the child is in RQ: it may be running
    recording.record([outcome_of(_)])
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.cancelled, batch.jobs.get().status) == ("cancelled", 1, "cancelled")


def test_children_that_had_succeeded_before_the_cancel_count_as_what_they_are():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    recording.record([outcome_of(below) for below in claim(opened)])
    batch.cancel()
    recording.record([returned(job)])
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.succeeded) == ("cancelled", 1)


def test_a_child_that_is_cancelled_by_itself_fails_its_job(ledger):
    batch = open_batch(tasks.open_child, ledger.path)
    (job,) = claim(batch)
    opened = open_child(job)
    recording.record([returned(job)])
    opened.cancel()
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.jobs.get().error) == ("failed", "Its child batch “child” was cancelled.")
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    opened.refresh_from_db()
    assert (batch.status, opened.status) == ("succeeded", "succeeded")


def test_a_retry_under_a_cancelled_batch_is_refused_with_nothing_changed():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    recording.record([returned(job)])
    (below,) = claim(opened)
    batch.cancel()
    recording.record([outcome_of(below, Kind.FAILED)])
    settle()
    batch.refresh_from_db()
    assert batch.status == "cancelled"
    for attempt in (lambda: opened.retry_failed(True), lambda: opened.jobs.get().retry()):
        with pytest.raises(BatchCancelled, match="was cancelled: retry that one"):
            attempt()
    opened.refresh_from_db()
    assert (opened.status, opened.round, opened.jobs.get().status) == ("failed", 0, "failed")


def test_a_child_of_a_run_that_came_to_nothing_is_not_retried_beside_its_job():
    with Batch.open(max_attempts=2) as batch:
        batch.enqueue(tasks.ok)
    (job,) = claim(batch)
    orphan = open_child(job)
    recording.record([outcome_of(job, Kind.FAILED)])
    settle()
    with pytest.raises(BatchError, match="Nobody waits for batch"):
        orphan.retry_failed(include_cancelled=True)


def test_a_cancelled_tree_is_revived_from_its_root():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job, 2)
    recording.record([returned(job, opened)])
    batch.cancel()
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.retry_failed()) == ("cancelled", 0)
    assert batch.retry_failed(include_cancelled=True) == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, batch.result) == ("succeeded", [[0, 1]])


def test_a_job_with_a_deleted_child_is_run_again():
    batch = run(tasks.child_with_callback, "success", "tests.tasks.boom_callback")
    child().delete()
    batch.retry_failed()
    assert batch.jobs.get().status == "created"


def test_deleting_a_batch_deletes_the_tree_below_it(ledger):
    batch = run(tasks.descend, ledger.path, 3, 2)
    other = run(tasks.return_child)
    batch.delete()
    assert set(Batch.objects.values_list("description", flat=True)) == {"root", "child"}
    assert BatchJob.objects.count() == other.total + other.callbacks.count() + 3


def test_a_child_that_is_waited_for_is_not_deleted():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    kept, ended = open_child(job), open_child(job)
    recording.record([returned(job)])
    recording.record([outcome_of(below) for below in claim(ended)])
    with pytest.raises(BatchError, match="takes its outcome"):
        Batch.objects.get(pk=ended.pk).delete()
    kept.cancel()
    settle()


def test_a_batch_is_not_deleted_while_one_below_it_runs():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    orphan = open_child(job, 2)
    claim(orphan)
    recording.record([outcome_of(job, Kind.FAILED)])
    settle()
    drain()
    batch.refresh_from_db()
    assert batch.status == "failed"
    with pytest.raises(BatchError, match="below batch"):
        batch.delete()
    assert batch.jobs.count() == 1


def test_stages_whoever_waits_for_the_first_waits_for_the_last(ledger):
    with Batch.open("first stage") as batch:
        batch.on_success(tasks.next_stage, ledger.path, 3)
        batch.map(tasks.ok, range(2))
    drain()
    assert ledger.lines == ["stage 3", "stage 2", "stage 1", "stage 0"]
    batch.refresh_from_db()
    assert (batch.status, batch.open_callbacks, batch.result) == ("succeeded", 0, "report")
    assert [b.parent.event for b in Batch.objects.exclude(pk=batch.pk)] == ["success"] * 3


def test_a_batch_with_a_callback_that_waits_has_not_ended_with_its_callbacks(ledger):
    with Batch.open() as batch:
        batch.on_success(tasks.ok_callback)
    (callback,) = claim(callbacks=True)
    opened = open_child(callback)
    recording.record([returned(callback, opened)])
    batch.refresh_from_db()
    assert (batch.status, batch.open_callbacks, batch.result) == ("succeeded", 1, None)
    recording.record([outcome_of(below) for below in claim(opened)])
    settle()
    batch.refresh_from_db()
    assert (batch.open_callbacks, batch.result) == (0, [1])


def test_a_failed_stage_is_retried_from_the_first(ledger, broken):
    with Batch.open("first stage") as batch:
        batch.on_success(tasks.ok_callback)
    (callback,) = claim(callbacks=True)
    opened = open_child(callback)
    recording.record([returned(callback, opened)])
    recording.record([outcome_of(below, Kind.FAILED) for below in claim(opened)])
    settle()
    assert batch.callbacks.get().status == "failed"
    assert Batch.objects.get(pk=batch.pk).retry_failed() == 1
    assert batch.callbacks.get().status == "waiting"
    drain()
    opened.refresh_from_db()
    assert (opened.status, batch.callbacks.get().status, batch.callbacks.get().attempts) == ("succeeded",) * 2 + (1,)


def test_a_callback_of_a_child_adds_to_the_batch_above():
    batch = run(tasks.child_with_callback, "success", "tests.tasks.add_to_parent")
    assert (batch.total, batch.succeeded, batch.status) == (2, 2, "succeeded")


def test_a_job_that_failed_by_its_child_counts_towards_max_failures(ledger):
    with Batch.open(max_failures=0) as batch:
        batch.enqueue(tasks.open_child, ledger.path, "tests.tasks.boom")
        batch.using(run_after=3600).enqueue(tasks.ok)
    drain(raise_failures=False)
    batch.refresh_from_db()
    assert (batch.status, batch.failed, batch.cancelled) == ("failed", 1, 1)


def test_a_waiting_job_counts_as_tried():
    with Batch.open() as batch:
        batch.on_attempted(tasks.ok_callback)
        batch.enqueue(tasks.ok)
    (job,) = claim(batch)
    open_child(job)
    recording.record([returned(job)])
    assert batch.callbacks.get().event == "attempted"


def test_a_tree_of_depth_twelve_ends_with_each_callback_once(ledger):
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
    recording.record([returned(job)])
    drain()
    batch.refresh_from_db()
    assert batch.status == "succeeded"
    assert Counter(Batch.objects.filter(description="child").values_list("status", "callbacks__status")) == {
        ("succeeded", "succeeded"): 1_000
    }


def test_counters_that_differ_from_their_rows_keep_no_parent_from_being_told(caplog):
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    recording.record([returned(job)])
    recording.record([outcome_of(below) for below in claim(opened)])
    Batch.objects.filter(pk=batch.pk).update(pending=0, succeeded=1)
    settle()
    batch.refresh_from_db()
    assert (batch.status, batch.pending, batch.succeeded) == ("succeeded", 0, 1)
    assert "differ from its rows" in caplog.text


def test_outcomes_carry_what_the_run_has_opened():
    job = claim(open_batch(tasks.ok))[0]
    opened = open_child(job)
    outcome = returned(job, opened)
    assert Outcome.loads(outcome.dumps()) == outcome
    assert (Outcome.loads(outcome.dumps()).has_children, Outcome.loads(outcome.dumps()).returned) == (True, opened.pk)


def test_a_cancel_that_was_cut_off_above_is_carried_down_later():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job, 2)
    recording.record([returned(job)])
    steering.cancel(batch.pk)
    assert not Batch.objects.get(pk=opened.pk).cancelled_at
    assert children.carry_cancels_down() == 1
    assert Batch.objects.get(pk=opened.pk).status == "cancelled"
    settle()


def failed_below(**options):
    """A batch whose job failed because a job of its child did; and that child."""
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job, **options)
    recording.record([returned(job)])
    recording.record([outcome_of(below, Kind.FAILED) for below in claim(opened)])
    settle()
    batch.refresh_from_db()
    assert batch.status == "failed"
    return batch, opened


def test_a_retry_goes_on_in_a_child_once_its_key_is_free(monkeypatch):
    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    batch, opened = failed_below(key="nightly")
    with Batch.open(key="nightly") as other:
        other.enqueue(tasks.ok)
    assert batch.retry_failed() == 0
    settle()
    assert (batch.status, batch.jobs.get().status) == ("running", "failed")
    recording.record([outcome_of(job) for job in claim(other)])
    settle()
    assert batch.jobs.get().status == "waiting"
    drain()
    batch.refresh_from_db()
    opened.refresh_from_db()
    assert (batch.status, opened.status) == ("succeeded", "succeeded")


def test_children_of_two_jobs_with_one_key_are_retried_one_after_the_other(monkeypatch):
    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    with Batch.open() as batch:
        batch.map(tasks.ok, range(2))
    for job in claim(batch):
        opened = open_child(job, key="one at a time")
        recording.record([returned(job)])
        recording.record([outcome_of(below, Kind.FAILED) for below in claim(opened)])
    settle()
    assert batch.retry_failed() == 1
    drain()
    drain()
    batch.refresh_from_db()
    assert batch.status == "succeeded"


def test_children_of_one_job_with_one_key_do_not_stop_the_retry():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    for _ in range(2):
        opened = open_child(job, key="one at a time")
        recording.record([outcome_of(below, Kind.FAILED) for below in claim(opened)])
    recording.record([returned(job)])
    settle()
    batch.refresh_from_db()
    for expected in ("failed", "succeeded"):
        assert batch.retry_failed() == 1
        drain()
        batch.refresh_from_db()
        assert batch.status == expected


def test_a_cancelled_success_callback_of_a_child_is_retried_from_above():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    with running_as(job), Batch.open("child") as opened:
        opened.on_success(tasks.ok_callback)
        opened.enqueue(tasks.ok)
    recording.record([returned(job)])
    recording.record([outcome_of(below) for below in claim(opened)])
    assert opened.callbacks.get().cancel()
    settle()
    batch.refresh_from_db()
    assert batch.status == "failed"
    assert batch.retry_failed() == 1
    drain()
    batch.refresh_from_db()
    assert (batch.status, opened.callbacks.get().status) == ("succeeded", "succeeded")


def test_an_ended_child_is_not_deleted_while_its_job_runs():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    recording.record([outcome_of(below) for below in claim(opened)])
    with pytest.raises(BatchError, match="takes its outcome"):
        Batch.objects.get(pk=opened.pk).delete()
    recording.record([returned(job, opened)])
    settle()
    assert batch.jobs.get().result == [1]


def test_a_retry_below_a_batch_that_is_being_deleted_is_refused():
    batch, opened = failed_below()
    drain()
    assert repairing.begin_deleting(batch.pk)
    with pytest.raises(BatchError, match="is being deleted"):
        opened.retry_failed()
    repairing.carry_on_deleting()
    assert not Batch.objects.exists()
