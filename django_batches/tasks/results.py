"""Converts the rows of jobs to `TaskResult` objects of the framework."""

import builtins
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from ..calls.options import type_path
from ..exceptions import BatchCancelled, BatchError
from ..models import BatchJob
from ..states import JobStatus
from .framework import Task, TaskError, TaskResult, TaskResultStatus

STATUSES = {
    JobStatus.CREATED: TaskResultStatus.READY,
    JobStatus.QUEUED: TaskResultStatus.READY,
    JobStatus.SCHEDULED: TaskResultStatus.READY,
    JobStatus.RUNNING: TaskResultStatus.RUNNING,
    JobStatus.WAITING: TaskResultStatus.RUNNING,
    JobStatus.SUCCEEDED: TaskResultStatus.SUCCESSFUL,
    JobStatus.FAILED: TaskResultStatus.FAILED,
    JobStatus.CANCELLED: TaskResultStatus.FAILED,
}


def new_result(
    task: "Task[..., Any]", job_id: UUID, args: Sequence[Any], kwargs: dict[str, Any], **fields: Any
) -> "TaskResult[..., Any]":
    """Creates a result. Its status is READY, unless `fields` has another one."""
    values: dict[str, Any] = {
        **dict.fromkeys(("enqueued_at", "started_at", "last_attempted_at", "finished_at")),
        "status": TaskResultStatus.READY,
        "backend": task.backend,
        "errors": [],
        "worker_ids": [],
    }
    return TaskResult(task=task, id=str(job_id), args=list(args), kwargs=kwargs, **values | fields)


def result_of(job: BatchJob, task: "Task[..., Any]", backend: str) -> "TaskResult[..., Any]":
    """Creates the result of a job from its row, which has the start, worker and error of the last attempt only."""
    status = STATUSES[JobStatus(job.status)]
    result = new_result(
        task,
        job.pk,
        job.args,
        job.kwargs,
        status=status,
        backend=backend,
        enqueued_at=job.created_at,
        started_at=job.started_at,
        last_attempted_at=job.started_at,
        finished_at=job.finished_at,
        errors=_errors(job),
        worker_ids=worker_ids(job.attempts + (job.status == JobStatus.RUNNING), job.worker),
    )
    if status == TaskResultStatus.SUCCESSFUL:
        change(result, _return_value=job.result)
    return result


def change(result: "TaskResult[..., Any]", **fields: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(result, name, value)


def worker_ids(attempts: int, last: str) -> list[str]:
    """Returns one id per attempt, because `TaskResult.attempts` counts them. All but the last are empty."""
    return [""] * (attempts - 1) + [last] if attempts else []


def task_error(error_type: str, traceback: str) -> TaskError:
    """Creates the error of a row: a `BatchError` if no exception caused it (a killed worker, a failed child batch)."""
    if hasattr(builtins, error_type):
        path = f"builtins.{error_type}"
    elif "." not in error_type or error_type == "rq.Retry" or error_type.rpartition(".")[0] == "django_batches":
        path = type_path(BatchError)
    else:
        path = error_type
    return TaskError(exception_class_path=path, traceback=traceback)


def _errors(job: BatchJob) -> list[TaskError]:
    if job.status == JobStatus.CANCELLED:
        return [TaskError(exception_class_path=type_path(BatchCancelled), traceback=job.error or "It was cancelled.")]
    return [task_error(job.error_type, job.traceback or job.error)] if job.error_type else []
