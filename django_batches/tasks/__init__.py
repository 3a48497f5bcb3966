"""Django Tasks as jobs of batches: `BatchesBackend` for the setting `TASKS`.

Needs Django 6.0 or newer, or on Django 5.2 the backport `django-tasks`. The rest of the app works without either, and
imports this package only when it finds a Task.
"""

from .backend import BatchesBackend, announce, refuse_others  # noqa: F401 (used through `calls.functions.framework`)
from .runs import TaskRun  # noqa: F401

__all__ = ["BatchesBackend"]
