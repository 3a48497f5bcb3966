"""The Tasks framework: Django's own since 6.0, the backport `django-tasks` on Django 5.2."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

# Type checkers see Django's names, with or without the backport.
if TYPE_CHECKING or find_spec("django.tasks"):
    from django.tasks import Task, TaskContext, TaskResult, TaskResultStatus
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import TaskError
    from django.tasks.exceptions import TaskException, TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
else:
    try:
        from django_tasks.backends.base import BaseTaskBackend
        from django_tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
        from django_tasks.exceptions import TaskException, TaskResultDoesNotExist
        from django_tasks.signals import task_enqueued, task_finished, task_started
        from django_tasks.utils import normalize_json
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "django_batches.tasks needs the Tasks framework, which Django includes since 6.0. On Django 5.2, install "
            "the backport: pip install 'django-batches[tasks]'.",
            name=error.name,
        ) from error

__all__ = [
    "BaseTaskBackend", "Task", "TaskContext", "TaskError", "TaskException", "TaskResult", "TaskResultDoesNotExist",
    "TaskResultStatus", "normalize_json", "task_enqueued", "task_finished", "task_started",
]  # fmt: skip
