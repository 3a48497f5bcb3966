"""Running one job, from its message to its outcome. RQ calls `run` by its path: "django_batches.execution.run"."""

import django
from django.apps import apps

__all__ = ["run"]


def run() -> None:
    """Runs the current RQ job as the job of a batch and reports its outcome. Called by RQ workers. Never raises."""
    if not apps.ready:
        django.setup()  # a plain `rq worker` has not
    # In a function: the models can be imported only now.
    from .runner import run_current_job  # noqa: PLC0415

    run_current_job()
