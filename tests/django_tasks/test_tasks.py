"""Django Tasks as jobs and callbacks of batches, added by the batch's own verbs."""

import threading
from datetime import timedelta

import pytest
from django.utils import timezone

from django_batches import Batch
from django_batches.calls.functions import bound_names, path_of, resolve, task_at
from django_batches.exceptions import BatchFinished, FunctionNotAllowed
from django_batches.models.block import Block
from django_batches.testing import drain
from django_batches.transitions import repairing

from .. import framework_tasks as fw, tasks

pytestmark = pytest.mark.django_db


@pytest.fixture
def told():
    """The signals of the framework that are sent: (name, sender, status, attempts)."""
    seen = []
    signals = {"enqueued": fw.task_enqueued, "started": fw.task_started, "finished": fw.task_finished}
    receivers = []
    for name, signal in signals.items():

        def receive(sender, task_result, name=name, **kwargs):
            seen.append((name, sender.__name__, str(task_result.status), task_result.attempts))

        receivers.append((signal, receive))
        signal.connect(receive)
    yield seen
    for signal, receive in receivers:
        signal.disconnect(receive)


def results(batch):
    drain()
    batch.refresh_from_db()
    assert repairing.drift(batch.pk) == {}
    return list(batch.results())


def test_tasks_are_added_by_every_verb():
    with Batch.open() as batch:
        job = batch.enqueue(fw.add, 1, other=2)
        assert batch.map(fw.add_async, [10, 20], other=5) == 2
        assert batch.starmap(fw.add, [(1, 1)]) == 1
        batch.enqueue("tests.framework_tasks.add", 7)
    assert job.func == fw.add.module_path == "tests.framework_tasks.add"
    assert results(batch) == [3, 15, 25, 2, 7]


def test_a_task_is_found_by_its_path():
    assert path_of(fw.add) == path_of("tests.framework_tasks.add") == path_of(fw.add.using(queue_name="mail"))
    assert resolve("tests.framework_tasks.add") is fw.add.func
    assert task_at("tests.framework_tasks.add") is fw.add
    assert task_at("tests.tasks.ok") is None


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (fw.stolen, "posixpath.basename may not run as a job: its module posixpath is in no installed app"),
        ("tests.framework_tasks.stolen", "posixpath.basename may not run as a job"),
        (fw.add.func, "names another object than the one passed: pass the Task itself"),
        (fw.task_of_plain, "decorate the function with @task, so that its name is that of the Task"),
        (
            fw.hidden,
            "framework_tasks.shadowed names another object than the one passed: give the function its own name",
        ),
        (type(fw.add), "Task is not a function"),
    ],
)
def test_a_forbidden_task_is_refused_with_the_fix(func, words):
    with pytest.raises(FunctionNotAllowed) as raised:
        path_of(func)
    assert words in str(raised.value)


def test_an_object_like_a_task_is_checked_by_its_function():
    class Impostor:
        func = print
        priority, queue_name, run_after, takes_context, module_path = 0, "default", None, False, "tests.tasks.ok"

        def enqueue(self):
            pass

    with pytest.raises(FunctionNotAllowed, match=r"builtins\.print may not run"):
        path_of(Impostor())


def test_an_invalid_call_is_refused_with_the_signature():
    with pytest.raises(TypeError, match=r"add\(1, two=3\): .* its signature is \(one, other=0\)"):
        bound_names("tests.framework_tasks.add", 0, (1,), {"two": 3})
    with pytest.raises(TypeError, match=r"tell\(context, 1, ••••\): too many"):
        bound_names("tests.framework_tasks.tell", 0, (1, 2), {})
    assert bound_names("tests.framework_tasks.told", 1, ("x",), {}) == ["text"]


@pytest.mark.parametrize(
    ("opened", "given", "queue"),
    [
        (None, None, "images"),
        ("default", None, "images"),
        ("bulk", None, "bulk"),
        ("bulk", "mail", "mail"),
        (None, "default", "default"),
    ],
)
def test_the_queue_of_using_wins_then_the_batch_s_then_the_task_s(opened, given, queue):
    with Batch.open(queue=opened) as batch:
        job = batch.using(queue=given).using(timeout=5).enqueue(fw.add_async, 1)
        batch.using(queue=given).map(fw.add_async, [1])
        batch.using(queue=given).on_finish(fw.told.using(queue_name="images"))
        assert batch.using(queue=given).enqueue(fw.add, 1).queue == (given or opened or "default")
    assert (job.queue, job.timeout) == (queue, 5)
    assert batch.jobs.filter(queue=queue).count() >= 2
    assert f'"queue":"{queue}"' in Batch.objects.get().registered_callbacks


def test_the_queue_of_a_task_added_by_its_path_or_after_the_block():
    with Batch.open() as batch:
        assert batch.enqueue("tests.framework_tasks.add_async", 1).queue == "images"
    assert batch.enqueue(fw.add_async, 1).queue == "images"
    assert batch.map(fw.add_async, [1]) == 1
    assert set(batch.jobs.values_list("queue", flat=True)) == {"images"}


def test_run_after_of_a_task_is_kept_and_that_of_using_wins():
    tomorrow = timezone.now() + timedelta(days=1)
    with Batch.open() as batch:
        job = batch.enqueue(fw.add.using(run_after=tomorrow), 1)
        sooner = batch.using(run_after=60).enqueue(fw.add.using(run_after=tomorrow), 1)
        batch.on_finish(fw.told.using(run_after=tomorrow))
    assert (job.status, job.due_at) == ("scheduled", tomorrow)
    assert sooner.due_at < tomorrow
    assert tomorrow.isoformat() in Batch.objects.get().registered_callbacks
    assert drain() == 0


def test_a_priority_is_refused_with_the_fix():
    with Batch.open() as batch:
        with pytest.raises(ValueError, match=r"add has the priority 5, but jobs of a batch have none: add it with"):
            batch.enqueue(fw.urgent, 1)
        batch.enqueue(fw.urgent.using(priority=0), 1)
    assert results(batch) == [1]


def test_a_task_takes_its_context_with_the_attempt():
    with Batch.open(max_attempts=3) as batch:
        batch.enqueue(fw.tell, "value")
        batch.enqueue(fw.tell_async)
        batch.enqueue(fw.fail_twice)
    key = str(batch.jobs.first().pk)
    assert results(batch) == [[1, key, "drain", ["value"], key, "value"], 1, 3]
    assert list(batch.jobs.values_list("attempts", flat=True)) == [1, 1, 3]


def test_a_callback_may_be_a_task():
    with Batch.open() as batch:
        batch.on_success(fw.told, text="done")
        batch.enqueue(fw.add, 1)
    assert drain() == 2
    assert batch.callbacks.get().result == [1, str(batch.pk), "done"]


def test_a_task_may_return_a_batch():
    with Batch.open() as batch:
        batch.enqueue(fw.sort_in_children, [3, 1, 2])
    assert results(batch) == [[1, 2, 3]]


def test_a_result_is_stored_as_the_framework_stores_it():
    with Batch.open(max_attempts=3) as batch:
        batch.map(fw.give, ["bytes", "tuple", "lambda"])
    drain(raise_failures=False)
    text, items, refused = batch.jobs.all()
    assert (text.result, items.result) == ("text", [1, [2]])
    assert refused.attempts == 1 and "cannot be passed as JSON" in refused.error


def test_the_signals_of_a_task_that_succeeds(told):
    with Batch.open() as batch:
        batch.enqueue(fw.add, 1)
        batch.enqueue(tasks.ok)
    assert told == [("enqueued", "BatchesBackend", "READY", 0)]
    drain()
    assert told[1:] == [
        ("started", "BatchesBackend", "RUNNING", 1),
        ("finished", "BatchesBackend", "SUCCESSFUL", 1),
    ]


def test_each_task_of_a_map_is_announced_once_it_was_added(told):
    with Batch.open() as batch:
        batch.map(fw.add, [1, 2])
        assert len(told) == 2
    assert batch.map(fw.add, [3]) == 1 and batch.map(tasks.ok, [3]) == 1
    assert [name for name, *_ in told] == ["enqueued"] * 3
    batch.cancel()
    with pytest.raises(BatchFinished):
        batch.map(fw.add, [4])
    assert len(told) == 3


def test_task_finished_is_sent_once_no_attempt_is_left(told):
    with Batch.open(max_attempts=2) as batch:
        batch.enqueue(fw.boom)
    drain(raise_failures=False)
    assert [(name, status, attempts) for name, _, status, attempts in told] == [
        ("enqueued", "READY", 0),
        ("started", "RUNNING", 1),
        ("started", "RUNNING", 2),
        ("finished", "FAILED", 2),
    ]


def test_task_finished_is_sent_when_rq_retries_are_used_up(told):
    with Batch.open() as batch:
        batch.enqueue(fw.retry_later)
    drain(raise_failures=False)
    assert batch.jobs.get().status == "failed"
    assert [(name, attempts) for name, _, _, attempts in told] == [
        ("enqueued", 0),
        ("started", 1),
        ("started", 2),
        ("finished", 2),
    ]


def test_task_finished_is_sent_if_a_task_finds_its_batch_cancelled(told):
    with Batch.open() as batch:
        batch.enqueue(fw.find_it_cancelled)
    drain(raise_failures=False)
    assert batch.jobs.get().status == "cancelled"
    assert told[-1] == ("finished", "BatchesBackend", "FAILED", 1)


def test_no_task_finished_is_sent_for_a_task_that_waits_for_children(told):
    with Batch.open() as batch:
        batch.enqueue(fw.sort_in_children, [2, 1])
    assert results(batch) == [[1, 2]]
    assert [name for name, *_ in told] == ["enqueued", "started"]


def test_a_receiver_that_raises_does_not_affect_the_job(caplog):
    def started(**kwargs):
        raise ValueError("started")

    def finished(**kwargs):
        raise SystemExit("finished")

    fw.task_started.connect(started)
    fw.task_finished.connect(finished)
    try:
        with Batch.open() as batch:
            batch.enqueue(fw.add, 1)
        assert results(batch) == [1]
    finally:
        fw.task_started.disconnect(started)
        fw.task_finished.disconnect(finished)
    assert "A receiver of task_finished failed" in caplog.text


def test_receivers_know_the_error_and_the_running_job():
    seen = []

    def finished(task_result, **kwargs):
        (error,) = task_result.errors
        seen.append((error.exception_class, "ValueError: no" in error.traceback, task_result.finished_at is not None))

    fw.task_finished.connect(finished)
    try:
        with Batch.open() as batch:
            batch.enqueue(fw.boom)
        drain(raise_failures=False)
    finally:
        fw.task_finished.disconnect(finished)
    assert seen == [(ValueError, True, True)]


def test_the_innermost_open_block_of_a_context():
    assert Block.innermost() is None
    with Batch.open() as outer:
        assert Block.innermost().batch is outer
        with Batch.open() as inner:
            assert Block.innermost().batch is inner
        assert Block.innermost().batch is outer
        seen = []
        thread = threading.Thread(target=lambda: seen.append(Block.innermost()))
        thread.start()
        thread.join()
        assert seen == [None]
    assert Block.innermost() is None


def test_blocks_may_be_left_in_another_order():
    first, second = Batch.open(), Batch.open()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert Block.innermost() is second
    second.__exit__(None, None, None)
    assert Block.innermost() is None


def test_a_block_that_cannot_be_sealed_is_left_too():
    with pytest.raises(BatchFinished), Batch.open() as batch:
        batch.enqueue(tasks.ok)
        Batch.objects.get(pk=batch.pk).cancel()
    assert Block.innermost() is None
    with pytest.raises(BatchFinished):
        batch.enqueue(tasks.ok)
