"""`BatchesBackend`: what `my_task.enqueue()` does, and what can be read of it."""

import asyncio
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from django_batches import Batch
from django_batches.exceptions import BatchCancelled, BatchError, FunctionNotAllowed
from django_batches.models import BatchJob
from django_batches.tasks import BatchesBackend
from django_batches.tasks.framework import TaskException, TaskResultDoesNotExist, TaskResultStatus
from django_batches.testing import drain
from django_batches.transitions import applying, claiming
from django_batches.transport.outcomes import Kind

from .. import framework_tasks as fw, tasks
from ..road import claim, outcome_of

pytestmark = pytest.mark.django_db

BACKEND = {"BACKEND": "django_batches.tasks.BatchesBackend"}


def job_of(result):
    return BatchJob.objects.get(pk=result.id)


def refreshed(result):
    result.refresh()
    return result


def run(work):
    return async_to_sync(work)()


def test_outside_of_a_block_a_task_becomes_a_batch_of_one_job():
    result = fw.add.enqueue(1, other=2)
    batch = Batch.objects.get()
    assert (batch.description, batch.status, batch.total) == ("tests.framework_tasks.add", "running", 1)
    assert (batch.queue, batch.parent, batch.max_attempts) == ("default", None, 1)
    assert job_of(result).batch == batch
    assert drain() == 1
    batch.refresh_from_db()
    assert batch.status == "succeeded" and refreshed(result).return_value == 3


def test_in_the_open_block_a_task_joins_the_batch():
    with Batch.open("filled") as batch:
        result = fw.add.enqueue(1)
        batch.enqueue(fw.add, 2)
    after = fw.add.enqueue(3)
    assert job_of(result).batch == batch and batch.total == 2
    assert job_of(after).batch != batch
    assert drain() == 3


def test_the_options_and_the_queue_are_those_of_the_batch():
    with Batch.open(queue="bulk", max_attempts=4):
        assert fw.add_async.enqueue(1) and fw.add.enqueue(1)
    assert set(BatchJob.objects.values_list("queue", "max_attempts")) == {("bulk", 4)}
    assert job_of(fw.add_async.enqueue(1)).queue == "images"


def test_with_nested_blocks_a_task_joins_the_innermost():
    with Batch.open() as outer:
        with Batch.open() as inner:
            first = fw.add.enqueue(1)
        second = fw.add.enqueue(2)
    assert (job_of(first).batch, job_of(second).batch) == (inner, outer)


def test_a_task_joins_the_batch_of_an_asynchronous_block():
    async def work():
        async with Batch.open() as batch:
            joined = await fw.add_async.aenqueue(1)
            several = await asyncio.gather(*(fw.add.aenqueue(number) for number in range(5)))
        return batch, joined, several, await fw.add.aenqueue(9)

    batch, joined, several, after = run(work)
    assert batch.jobs.count() == 6
    assert {job_of(result).batch for result in [joined, *several]} == {batch}
    assert job_of(after).batch != batch


def test_two_asynchronous_blocks_at_once_do_not_mix():
    async def fill(number, other_is_open, mine_is_open):
        async with Batch.open(str(number)):
            mine_is_open.set()
            await other_is_open.wait()
            return (await fw.add.aenqueue(number)).id

    async def work():
        one, two = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(fill(1, one, two), fill(2, two, one))

    first, second = run(work)
    assert BatchJob.objects.get(pk=first).batch.description == "1"
    assert BatchJob.objects.get(pk=second).batch.description == "2"


def test_what_outlives_the_asynchronous_block_is_outside_of_it():
    async def late(is_left):
        await is_left.wait()
        return await fw.add.aenqueue(1)

    async def work():
        is_left = asyncio.Event()
        async with Batch.open() as batch:
            started = asyncio.create_task(late(is_left))
            await asyncio.sleep(0)
        is_left.set()
        return batch, await started

    batch, result = run(work)
    assert batch.total == 0 and job_of(result).batch != batch


@pytest.mark.django_db(transaction=True)
def test_another_thread_is_outside_of_the_block():
    made = []

    def work():
        made.append(fw.add.enqueue(1))
        transaction.get_connection().close()

    with Batch.open() as batch:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert batch.total == 0 and job_of(made[0]).batch != batch


def test_inside_a_running_job_it_is_detached_unless_in_an_open_block():
    with Batch.open() as batch:
        batch.enqueue(fw.enqueue_inside)
        drained = drain()  # in an open block: not the block of the job
    assert drained == 0 and drain() == 3
    own, alone, joined, child = batch.jobs.get().result
    assert own == str(batch.pk)
    assert BatchJob.objects.get(pk=alone).batch.parent is None
    assert str(BatchJob.objects.get(pk=joined).batch_id) == child
    assert Batch.objects.get(pk=child).parent == batch.jobs.get()


def test_a_job_that_drain_runs_in_an_open_block_is_not_in_that_block():
    with Batch.open() as first:
        first.enqueue(fw.enqueue_inside)
    with Batch.open() as around:
        assert drain() == 3
    assert around.total == 0


def test_a_rollback_leaves_nothing():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        result = fw.add.enqueue(1)
        1 / 0  # noqa: B018
    assert not Batch.objects.exists()
    with pytest.raises(TaskResultDoesNotExist):
        result.refresh()


def test_an_error_in_the_block_leaves_nothing():
    with pytest.raises(ZeroDivisionError), Batch.open():
        fw.add.enqueue(1)
        1 / 0  # noqa: B018
    assert not BatchJob.objects.exists()


def test_a_forbidden_task_leaves_nothing():
    with pytest.raises(FunctionNotAllowed):
        fw.stolen.enqueue("x")
    with pytest.raises(TypeError, match="missing a required argument"):
        fw.add.enqueue()
    assert not Batch.objects.exists()


def test_the_result_of_a_new_task():
    before = timezone.now()
    result = fw.add.enqueue(1, other=2)
    assert (result.status, result.attempts, result.is_finished) == (TaskResultStatus.READY, 0, False)
    assert (result.task, result.args, result.kwargs, result.backend) == (fw.add, [1], {"other": 2}, "default")
    assert before <= result.enqueued_at <= timezone.now()
    assert (result.started_at, result.last_attempted_at, result.finished_at) == (None, None, None)
    assert fw.add.get_result(result.id) == result
    with pytest.raises(ValueError, match="not finished"):
        result.return_value  # noqa: B018


def test_the_result_of_a_task_that_succeeded():
    result = fw.add.enqueue(1)
    drain()
    assert refreshed(result).status == TaskResultStatus.SUCCESSFUL
    assert (result.return_value, result.attempts, result.worker_ids, result.errors) == (1, 1, ["drain"], [])
    assert result.enqueued_at <= result.started_at == result.last_attempted_at <= result.finished_at


def test_the_result_of_a_task_that_failed():
    result = fw.boom.enqueue("no such thing")
    drain(raise_failures=False)
    assert refreshed(result).status == TaskResultStatus.FAILED and result.is_finished
    (error,) = result.errors
    assert error.exception_class is ValueError
    assert error.traceback.endswith("ValueError: no such thing\n")
    with pytest.raises(ValueError, match="Task failed"):
        result.return_value  # noqa: B018


def test_a_task_that_exits_has_failed():
    result = fw.leave.enqueue()
    drain(raise_failures=False)
    assert refreshed(result).errors[0].exception_class is SystemExit


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("created", "READY"),
        ("queued", "READY"),
        ("scheduled", "READY"),
        ("running", "RUNNING"),
        ("waiting", "RUNNING"),
        ("succeeded", "SUCCESSFUL"),
        ("failed", "FAILED"),
        ("cancelled", "FAILED"),
    ],
)
def test_every_status_of_a_job_is_one_of_the_framework(status, expected):
    result = fw.add.enqueue(1)
    BatchJob.objects.update(status=status)
    assert str(refreshed(result).status) == expected


def test_a_task_that_runs_has_its_attempt_counted():
    result = fw.add.enqueue(1)
    (job,) = claim()
    claiming.mark_running([(job.id, job.dispatch, timezone.now(), "executor 1")], timezone.now)
    assert refreshed(result).status == TaskResultStatus.RUNNING
    assert (result.attempts, result.worker_ids) == (1, ["executor 1"]) and result.started_at


def test_a_task_that_waits_for_its_next_attempt_is_ready_and_has_its_error():
    with Batch.open(max_attempts=2, backoff=3600):
        result = fw.boom.enqueue()
    (job,) = claim()
    applying.record([outcome_of(job, Kind.FAILED, worker="executor 1", started_at=timezone.now())])
    assert refreshed(result).status == TaskResultStatus.READY
    assert (result.attempts, result.worker_ids) == (1, ["executor 1"])
    assert result.errors[0].exception_class is ValueError and result.last_attempted_at


def test_a_cancelled_task_has_failed_with_the_reason():
    with Batch.open() as batch:
        result = fw.add.enqueue(1)
    batch.cancel()
    assert refreshed(result).status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is BatchCancelled and result.errors[0].traceback


def test_a_task_whose_worker_was_killed_has_a_batch_error():
    result = fw.add.enqueue(1)
    (job,) = claim()
    applying.record([outcome_of(job, Kind.KILLED, error_type="django_batches.killed", error="Its worker died.")])
    (error,) = refreshed(result).errors
    assert error.exception_class is BatchError and error.traceback == "Its worker died."


def test_run_after_is_honoured():
    tomorrow = timezone.now() + timedelta(days=1)
    result = fw.add.using(run_after=tomorrow).enqueue(1)
    assert job_of(result).due_at == tomorrow and drain() == 0
    again = fw.add.get_result(result.id)
    assert again == result and again.task.run_after == tomorrow


def test_a_result_is_read_through_its_own_task():
    result = fw.add.enqueue(1)
    with pytest.raises(TaskException, match="does not match"):
        fw.boom.get_result(result.id)
    assert async_to_sync(fw.add.aget_result)(result.id) == result
    async_to_sync(result.arefresh)()


@pytest.mark.parametrize("wrong", ["123", "01234567-89ab-7def-8123-456789abcdef", 7, ""])
def test_an_unknown_id_has_no_result(wrong):
    with pytest.raises(TaskResultDoesNotExist):
        fw.task_backends["default"].get_result(wrong)


def test_jobs_that_are_not_tasks_have_no_result():
    with Batch.open() as batch:
        job = batch.enqueue(tasks.ok)
    gone = fw.add.enqueue(1)
    BatchJob.objects.filter(pk=gone.id).update(func="tests.framework_tasks.gone")
    for key in (job.pk, gone.id):
        with pytest.raises(TaskResultDoesNotExist):
            fw.task_backends["default"].get_result(str(key))


def test_the_result_of_a_task_of_another_backend_that_was_added_by_a_verb(tmp_path):
    with Batch.open() as batch:
        job = batch.enqueue(fw.elsewhere, str(tmp_path / "ledger"))
    result = fw.task_backends["default"].get_result(str(job.pk))
    drain()
    assert refreshed(result).status == TaskResultStatus.SUCCESSFUL and result.backend == "default"


def test_a_task_of_another_backend_in_the_open_block_is_refused(ledger):
    with pytest.raises(BatchError, match="its backend 'immediate' is not a BatchesBackend"), Batch.open():
        fw.elsewhere.enqueue(ledger.path)
    assert not Batch.objects.exists() and ledger.lines == []
    fw.elsewhere.enqueue(ledger.path)
    assert ledger.lines == ["ran"]


def test_a_priority_is_refused():
    with pytest.raises(TaskException, match="priority"):
        fw.add.using(priority=5)
    with pytest.raises(TaskException, match="priority"):
        fw.task_backends["default"].enqueue(fw.urgent, [1], {})


def test_a_queue_that_is_not_in_the_setting_is_refused():
    with pytest.raises(TaskException, match="'unknown' is not valid"):
        fw.add.using(queue_name="unknown")
    with override_settings(TASKS={"default": {**BACKEND, "QUEUES": []}}):
        assert job_of(fw.add.using(queue_name="unknown").enqueue(1)).queue == "unknown"


def test_arguments_are_normalised_as_the_framework_does():
    result = fw.add.enqueue(b"bytes", other=(1, 2))
    assert (result.args, result.kwargs) == (["bytes"], {"other": [1, 2]})
    assert (job_of(result).args, job_of(result).kwargs) == (["bytes"], {"other": [1, 2]})
    with pytest.raises(TypeError, match="Unsupported type"):
        fw.add.enqueue(timezone.now())


def test_a_task_that_a_receiver_enqueues_gets_its_own_batch():
    def follow(task_result, **kwargs):
        if task_result.task == fw.add:
            fw.add_async.enqueue(1)

    fw.task_enqueued.connect(follow)
    try:
        fw.add.enqueue(1)
    finally:
        fw.task_enqueued.disconnect(follow)
    assert sorted(Batch.objects.values_list("total", "description")) == [
        (1, "tests.framework_tasks.add"),
        (1, "tests.framework_tasks.add_async"),
    ]


def test_the_options_of_the_setting_are_those_of_a_batch_of_one():
    options = {"timeout": 7, "max_attempts": 3, "backoff": [1, 2]}
    with override_settings(TASKS={"default": {**BACKEND, "OPTIONS": options}}):
        job = job_of(fw.add.enqueue(1))
        assert list(fw.task_backends["default"].check()) == []
    assert (job.timeout, job.max_attempts, job.backoff) == (7, 3, "[1.0, 2.0]")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timout": 3}, 'Unknown key TASKS["mine"]["OPTIONS"]["timout"]'),
        ({"max_attempts": 0}, "must be a whole number"),
    ],
)
def test_wrong_options_in_the_setting_are_reported_by_the_check(options, words):
    (error,) = BatchesBackend("mine", {"OPTIONS": options}).check()
    assert error.id == "django_batches.E013" and words in error.msg


def in_another_project(code, **settings):
    """Runs code in a process of its own, with Django set up by these settings."""
    setup = f"import django\nfrom django.conf import settings\nsettings.configure(**{settings!r})\ndjango.setup()\n"
    return subprocess.run(
        [sys.executable, "-c", setup + code],
        cwd=Path(__file__).parent.parent.parent,
        env={key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_wrong_settings_of_the_app_are_reported_by_its_own_check():
    with override_settings(DJANGO_BATCHES={"CACHE": "batches", "METRICS_TOKEN": "short"}):
        assert BatchesBackend("mine", {}).check() == []


def test_without_the_app_the_check_says_to_add_it():
    made = in_another_project(
        "from django_batches.tasks import BatchesBackend\n"
        "print(*[(e.id, e.hint) for e in BatchesBackend('default', {}).check()])\n"
    )
    assert "django_batches.E012" in made.stdout and "INSTALLED_APPS" in made.stdout, made.stderr


def test_without_the_framework_the_import_names_the_package_and_the_rest_works():
    made = in_another_project(
        "import django_batches.models, django_batches.execution.runner, django_batches.testing, django_batches.worker\n"
        "import django_batches.tasks\n",
        INSTALLED_APPS=["django_batches"],
        TASKS={"default": BACKEND},
    )
    assert made.returncode == 0, made.stderr
    hidden = "import sys\nsys.modules.update({'django.tasks': None, 'django_tasks': None})\n"
    made = in_another_project(
        f"{hidden}import django_batches.models, django_batches.execution.runner, django_batches.testing\n"
        "print('so far')\nimport django_batches.tasks\n",
        INSTALLED_APPS=["django_batches"],
    )
    assert "so far" in made.stdout
    assert "ModuleNotFoundError: django_batches.tasks needs the Tasks framework" in made.stderr
    assert "pip install 'django-batches[tasks]'" in made.stderr


def test_a_project_without_tasks_does_not_import_the_framework():
    made = in_another_project(
        "import sys, django_batches.models, django_batches.worker.executor, django_batches.testing\n"
        "print([name for name in sys.modules if name.startswith(('django_tasks', 'django_batches.tasks'))])\n",
        INSTALLED_APPS=["django_batches"],
    )
    assert made.stdout == "[]\n", made.stderr


@pytest.mark.django_db(transaction=True)
def test_a_worker_runs_tasks_and_their_results_can_be_read(start_worker):
    start_worker("--workers", 1)
    with Batch.open(max_attempts=3) as batch:
        results = [fw.add.enqueue(1), fw.add_async.enqueue(2), fw.fail_twice.enqueue(), fw.tell.enqueue()]
    alone = fw.boom.enqueue("far away")
    assert batch.wait(60) and job_of(alone).batch.wait(60)
    assert [refreshed(result).return_value for result in results[:3]] == [1, 2, 3]
    assert [result.attempts for result in results[:3]] == [1, 1, 3]
    attempt, key, worker, *_ = refreshed(results[3]).return_value
    assert (attempt, key, [worker]) == (1, results[3].id, results[3].worker_ids)
    assert "far away" in refreshed(alone).errors[0].traceback


@pytest.mark.django_db(transaction=True)
def test_a_plain_rq_worker_runs_tasks(start_worker):
    start_worker("--workers", 0)
    start_worker("default", command=("manage.py", "rqworker"))
    with Batch.open() as batch:
        results = [fw.add.enqueue(2), fw.tell.enqueue("x")]
    assert batch.wait(60)
    assert refreshed(results[0]).return_value == 2
    assert refreshed(results[1]).return_value[:2] == [1, results[1].id]
