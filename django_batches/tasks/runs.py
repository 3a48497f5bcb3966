"""One run of a Task, in the process that runs its job."""

import json
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.utils import timezone

from ..calls.options import type_path
from ..exceptions import BatchCancelled
from ..transport.outcomes import Kind, Outcome
from .backend import BatchesBackend
from .framework import Task, TaskContext, TaskResultStatus, normalize_json, task_finished, task_started
from .results import change, moment_of, new_result, task_error, worker_ids

if TYPE_CHECKING:
    from ..transport.message import Message

logger = logging.getLogger("django_batches")


class TaskRun:
    """What the framework promises to a Task that runs: its context, and the signals. No statement for either."""

    def __init__(self, task: "Task[..., Any]", message: "Message", worker: str, started_at: datetime) -> None:
        self._result = new_result(
            task,
            message.job_id,
            message.args,
            message.kwargs,
            status=TaskResultStatus.RUNNING,
            enqueued_at=moment_of(message.job_id, started_at),
            started_at=started_at,
            last_attempted_at=started_at,
            worker_ids=worker_ids(message.attempts + 1, worker),
        )

    def begin(self) -> list[Any]:
        """Sends `task_started`; returns the arguments that go before all others."""
        # Not within the job's alarm, which send_robust would swallow.
        task_started.send_robust(BatchesBackend, task_result=self._result)
        return [TaskContext(task_result=self._result)] if self._result.task.takes_context else []

    def normalised(self, value: Any) -> Any:
        """A return value as the framework keeps it (bytes as text); what it would not take is returned as it is."""
        try:
            return normalize_json(value)
        except (TypeError, ValueError, RecursionError):
            return value

    def end(self, outcome: Outcome) -> None:
        """Sends `task_finished` where the outcome is the last word. Never raises: the outcome must be told."""
        if outcome.kind == Kind.SUCCEEDED and not outcome.has_children:
            value = json.loads(outcome.result) if outcome.result else None
            self._send(TaskResultStatus.SUCCESSFUL, _return_value=value)
        elif outcome.kind == Kind.CANCELLED:
            self._fail(type_path(BatchCancelled), outcome)
        elif outcome.is_final or self._is_out_of_retries(outcome):
            self._fail(outcome.error_type, outcome)

    def _fail(self, error_type: str, outcome: Outcome) -> None:
        self._send(TaskResultStatus.FAILED, errors=[task_error(error_type, outcome.traceback or outcome.error)])

    def _is_out_of_retries(self, outcome: Outcome) -> bool:
        return outcome.kind == Kind.RETRY and self._result.attempts > (outcome.retry_max or 0)

    def _send(self, status: TaskResultStatus, **fields: Any) -> None:
        change(self._result, status=status, finished_at=timezone.now(), **fields)
        try:
            task_finished.send_robust(BatchesBackend, task_result=self._result)
        except BaseException:
            logger.exception("A receiver of task_finished broke off for job %s.", self._result.id)
