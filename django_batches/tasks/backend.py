"""The backend for the setting `TASKS`."""

from collections.abc import Iterable
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured

from .. import database
from ..calls.arguments import load_arguments
from ..calls.functions import task_at
from ..calls.options import Options
from ..database.inserting import NewJob
from ..exceptions import BatchError, FunctionNotAllowed
from ..models import Batch, BatchJob
from ..models.adding import add_job
from ..models.block import Block
from ..states import JobStatus
from .framework import BaseTaskBackend, Task, TaskException, TaskResult, TaskResultDoesNotExist, normalize_json
from .framework import task_enqueued as enqueued
from .results import new_result, result_of

P = ParamSpec("P")
R = TypeVar("R")

OPTIONS = ("backoff", "max_attempts", "timeout")


class BatchesBackend(BaseTaskBackend):
    """Runs Tasks as jobs of batches.

    `my_task.enqueue(...)` in the open block `with Batch.open(...)` adds the Task to that batch, as
    `batch.enqueue(my_task, ...)` does; with several open blocks around it, to the innermost. What counts is the context
    (thread or asynchronous task) of the call: a new thread is outside of the block. Everywhere else, in a running job
    too, the Task becomes a batch of its own with this one job, described by the Task's path, without a parent: nobody
    waits for it. `OPTIONS` of the setting: its `timeout`, `max_attempts` and `backoff`, as in `Batch.open`.

    Priorities are refused. `QUEUES` are the queue names that a Task may have (default: "default"; an empty list: any).
    In the open block a Task of another backend raises `BatchError`, because the batch would not wait for it.

    A result is the row of a job, by its key, as long as its batch exists; in the open block, once it is written. A row
    knows the start, worker and error of the last attempt: earlier ones stand as "" in `worker_ids`.

    Signals: `task_started` and `task_finished` are sent by the process that runs the job, the first in each attempt,
    the other once it has ended (the framework logs it then, an ERROR under `django.tasks` where it failed); a
    receiver's exception is logged. What ends in the books sends no `task_finished`: a
    killed or lost worker, a job that waits for child batches, a cancel before the start. Use `batch.on_finish`.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        refuse_others()

    def enqueue(self, task: "Task[P, R]", args: Iterable[Any], kwargs: dict[str, Any]) -> "TaskResult[P, R]":
        """Adds the Task to the open batch of this context, or to a batch of its own.

        Raises `InvalidTask`, and what `batch.enqueue` raises.
        """
        self.validate_task(task)
        given: Any = normalize_json([list(args), dict(kwargs)])
        block = Block.innermost()
        job = _add(block.batch, task, *given) if block else self._add_alone(task, *given)
        result = new_result(task, job.pk, *given, backend=self.alias, enqueued_at=job.created_at)
        # After the block of its own: what a receiver enqueues is no part of that batch.
        enqueued.send(type(self), task_result=result)
        return cast("TaskResult[P, R]", result)

    def get_result(self, result_id: str) -> "TaskResult[..., Any]":
        """The result with this id; raises `TaskResultDoesNotExist`."""
        try:
            job = database.jobs().filter(pk=UUID(str(result_id))).first()
            task = cast("Task[..., Any] | None", task_at(job.func)) if job else None
        except (ValueError, ImportError, FunctionNotAllowed) as error:
            raise TaskResultDoesNotExist(result_id) from error
        if job is None or task is None:
            raise TaskResultDoesNotExist(result_id)
        return result_of(job, self._as_added(task, job), backend=self.alias)

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """What is wrong with the entry in `TASKS`."""
        found: list[CheckMessage] = []
        if not apps.is_installed("django_batches"):
            hint = 'Add "django_batches" to INSTALLED_APPS.'
            found.append(Error(f'TASKS["{self.alias}"] needs the app.', hint=hint, id="django_batches.E012"))
        unknown = sorted(set(self.options) - set(OPTIONS))
        if unknown:
            hint = f"The options are: {', '.join(OPTIONS)}."
            message = f'Unknown key TASKS["{self.alias}"]["OPTIONS"]["{unknown[0]}"].'
            return [*found, Error(message, hint=hint, id="django_batches.E013")]
        try:
            Options.of(**self.options)
        except ImproperlyConfigured:
            pass  # in DJANGO_BATCHES, of which another check tells
        except (TypeError, ValueError) as error:
            found.append(Error(f'TASKS["{self.alias}"]["OPTIONS"]: {error}', id="django_batches.E013"))
        return found

    def _add_alone(self, task: "Task[P, R]", args: list[Any], kwargs: dict[str, Any]) -> "BatchJob":
        """A batch of one job, in one transaction: nobody finds it open."""
        block = Batch.open(task.module_path, queue=task.queue_name, parent=None, **self.options)
        with database.atomic(), block as batch:
            return _add(batch, task, args, kwargs)

    def _as_added(self, task: "Task[..., Any]", job: "BatchJob") -> "Task[..., Any]":
        """The Task with what its job was given besides, where this backend takes that."""
        try:
            return task.using(
                backend=self.alias,
                queue_name=job.queue if job.queue in self.queues or not self.queues else None,
                run_after=job.due_at if job.status == JobStatus.SCHEDULED else None,
            )
        except TaskException:
            return task


def _add(batch: "Batch", task: "Task[P, R]", args: list[Any], kwargs: dict[str, Any]) -> "BatchJob":
    return add_job(batch, task, args, kwargs)[0]


def announce(task: "Task[..., Any]", jobs: Iterable[NewJob]) -> None:
    """Sends `task_enqueued` for jobs that were added by the verbs of a batch."""
    for job in jobs:
        args, kwargs = load_arguments(job.arguments)
        enqueued.send(BatchesBackend, task_result=new_result(task, job.id, args, kwargs, enqueued_at=job.created_at))


def refuse_others() -> None:
    """From now on a Task of another backend that is enqueued in the open block of a batch raises `BatchError`."""
    enqueued.connect(_refuse, dispatch_uid="django_batches.tasks")


def _refuse(sender: Any, task_result: "TaskResult[..., Any]", **kwargs: Any) -> None:
    backend = sender if isinstance(sender, type) else type(sender)
    if not issubclass(backend, BatchesBackend) and (block := Block.innermost()):
        path, alias = task_result.task.module_path, task_result.backend
        raise BatchError(
            f"{path} was enqueued in the open block of batch {block.batch.pk}, but its backend {alias!r} is no "
            "BatchesBackend: it is no job of the batch, and may run all the same. Enqueue it outside of the block, or "
            "add it by batch.enqueue(task, ...)."
        )
