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
from .framework import (
    BaseTaskBackend,
    Task,
    TaskException,
    TaskResult,
    TaskResultDoesNotExist,
    normalize_json,
    task_enqueued as enqueued,
)
from .results import new_result, result_of

P = ParamSpec("P")
R = TypeVar("R")

OPTIONS = ("backoff", "max_attempts", "timeout")


class BatchesBackend(BaseTaskBackend):
    """Runs Tasks as jobs of batches.

    In the open block of a batch (the innermost one), `my_task.enqueue(...)` adds the Task to that batch, as
    `batch.enqueue(my_task, ...)` does. A new thread is outside of the block. Everywhere else, also in a running job,
    the Task becomes the only job of a new batch without a parent, whose description is the Task's path; `OPTIONS` are
    the `timeout`, `max_attempts` and `backoff` of such batches, as in `Batch.open`.

    Priorities are refused. `QUEUES` are the queue names that a Task may have (default: "default"; an empty list allows
    any). In an open block, a Task of another backend raises `BatchError`, because the batch would not wait for it.

    `get_result` reads the row of the job, so it works once the row is written and as long as the batch exists. The row
    has the start, worker and error of the last attempt only; earlier attempts appear as "" in `worker_ids`.

    The process that runs the job sends `task_started` in each attempt, and `task_finished` when the job has ended (the
    framework then logs a failure as an ERROR under `django.tasks`). Exceptions of receivers are logged. A job that the
    coordinator ends sends no `task_finished`: its worker was killed or lost, it waited for child batches, or it was
    cancelled before it started. `batch.on_finish` is called in all of these cases.
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
        job = add_job(block.batch, task, *given)[0] if block else self._add_alone(task, *given)
        result = new_result(task, job.pk, *given, backend=self.alias, enqueued_at=job.created_at)
        # Send the signal outside the new batch's block, or jobs that a receiver enqueues would join that batch.
        enqueued.send(type(self), task_result=result)
        return cast("TaskResult[P, R]", result)

    def get_result(self, result_id: str) -> "TaskResult[..., Any]":
        """Returns the result with this id. Raises `TaskResultDoesNotExist`."""
        try:
            job = database.jobs().filter(pk=UUID(str(result_id))).first()
            task = cast("Task[..., Any] | None", task_at(job.func)) if job else None
        except (ValueError, ImportError, FunctionNotAllowed) as error:
            raise TaskResultDoesNotExist(result_id) from error
        if job is None or task is None:
            raise TaskResultDoesNotExist(result_id)
        return result_of(job, self._as_added(task, job), backend=self.alias)

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        found: list[CheckMessage] = []
        if not apps.is_installed("django_batches"):
            hint = 'Add "django_batches" to INSTALLED_APPS.'
            found.append(Error(f'TASKS["{self.alias}"] needs django_batches.', hint=hint, id="django_batches.E012"))
        if unknown := sorted(set(self.options) - set(OPTIONS)):
            hint = f"The options are: {', '.join(OPTIONS)}."
            message = f'Unknown key TASKS["{self.alias}"]["OPTIONS"]["{unknown[0]}"].'
            return [*found, Error(message, hint=hint, id="django_batches.E013")]
        try:
            Options.of(**self.options)
        except ImproperlyConfigured:
            pass  # DJANGO_BATCHES is invalid, which another check reports
        except (TypeError, ValueError) as error:
            found.append(Error(f'TASKS["{self.alias}"]["OPTIONS"]: {error}', id="django_batches.E013"))
        return found

    def _add_alone(self, task: "Task[P, R]", args: list[Any], kwargs: dict[str, Any]) -> BatchJob:
        """Adds a batch of one job, in one transaction, so that no other process sees the batch open."""
        block = Batch.open(task.module_path, queue=task.queue_name, parent=None, **self.options)
        with database.atomic(), block as batch:
            return add_job(batch, task, args, kwargs)[0]

    def _as_added(self, task: "Task[..., Any]", job: BatchJob) -> "Task[..., Any]":
        """Returns the Task with the queue and start time of its job, if this backend allows them."""
        try:
            return task.using(
                backend=self.alias,
                queue_name=job.queue if job.queue in self.queues or not self.queues else None,
                run_after=job.due_at if job.status == JobStatus.SCHEDULED else None,
            )
        except TaskException:
            return task


def announce(task: "Task[..., Any]", jobs: Iterable[NewJob]) -> None:
    """Sends `task_enqueued` for jobs that were added with the methods of a batch."""
    for job in jobs:
        args, kwargs = load_arguments(job.arguments)
        enqueued.send(BatchesBackend, task_result=new_result(task, job.id, args, kwargs, enqueued_at=job.created_at))


def refuse_others() -> None:
    """Makes sure that a Task of another backend raises `BatchError` when it is enqueued in an open block."""
    enqueued.connect(_refuse, dispatch_uid="django_batches.tasks")


def _refuse(sender: Any, task_result: "TaskResult[..., Any]", **kwargs: Any) -> None:
    backend = sender if isinstance(sender, type) else type(sender)
    if not issubclass(backend, BatchesBackend) and (block := Block.innermost()):
        path, alias = task_result.task.module_path, task_result.backend
        raise BatchError(
            f"{path} was enqueued in the open block of batch {block.batch.pk}, but its backend {alias!r} is not a "
            "BatchesBackend. It is not a job of the batch, but may run anyway. Enqueue it outside of the block, or use "
            "batch.enqueue(task, ...)."
        )
