"""One run of a Task, in the process that runs its job."""

import json
import logging
from datetime import datetime
from typing import Any

from django.utils import timezone

from ..calls.options import type_path
from ..exceptions import BatchCancelled
from ..transport.message import Message
from ..transport.outcomes import Kind, Outcome
from .backend import BatchesBackend
from .framework import Task, TaskContext, TaskResultStatus, normalize_json, task_finished, task_started
from .results import change, new_result, task_error, worker_ids

logger = logging.getLogger("django_batches")


class TaskRun:
    """Creates the context of a running Task, and sends the signals of its start and end. Makes no query."""

    def __init__(self, task: "Task[..., Any]", message: Message, worker: str, started_at: datetime) -> None:
        self._result = new_result(
            task,
            message.job_id,
            message.args,
            message.kwargs,
            status=TaskResultStatus.RUNNING,
            # The id is a UUIDv7: it begins with the time in milliseconds.
            enqueued_at=datetime.fromtimestamp((message.job_id.int >> 80) / 1000, started_at.tzinfo),
            started_at=started_at,
            last_attempted_at=started_at,
            worker_ids=worker_ids(message.attempts + 1, worker),
        )

    def begin(self) -> list[Any]:
        """Sends `task_started`, and returns the arguments to pass before the job's own."""
        # Send the signal outside the job's timeout alarm: send_robust would swallow the exception of the alarm.
        task_started.send_robust(BatchesBackend, task_result=self._result)
        return [TaskContext(task_result=self._result)] if self._result.task.takes_context else []

    def normalised(self, value: Any) -> Any:
        """Returns the value as the framework stores it (bytes as text); unchanged if the framework would refuse it."""
        try:
            return normalize_json(value)
        except (TypeError, ValueError, RecursionError):
            return value

    def end(self, outcome: Outcome) -> None:
        """Sends `task_finished` if the outcome ends the job. Never raises, because the outcome must be reported."""
        is_last_retry = outcome.kind == Kind.RETRY and self._result.attempts > (outcome.retry_max or 0)
        if outcome.kind == Kind.SUCCEEDED and not outcome.has_children:
            value = json.loads(outcome.result) if outcome.result else None
            self._send(TaskResultStatus.SUCCESSFUL, _return_value=value)
        elif outcome.kind == Kind.CANCELLED or outcome.is_final or is_last_retry:
            error_type = type_path(BatchCancelled) if outcome.kind == Kind.CANCELLED else outcome.error_type
            error = task_error(error_type, outcome.traceback or outcome.error)
            self._send(TaskResultStatus.FAILED, errors=[error])

    def _send(self, status: TaskResultStatus, **fields: Any) -> None:
        change(self._result, status=status, finished_at=timezone.now(), **fields)
        try:
            task_finished.send_robust(BatchesBackend, task_result=self._result)
        except BaseException:
            logger.exception("A receiver of task_finished failed for job %s.", self._result.id)
