from contextlib import suppress
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import register
from django.utils.translation import gettext_lazy as _

from .calls.functions import load_framework_by
from .checks.redis import check_redis
from .checks.settings import check_settings


class DjangoBatchesConfig(AppConfig):
    name = "django_batches"
    verbose_name = _("Batches")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        register(check_settings)
        register(check_redis, deploy=True)
        load_framework_by(_tasks)
        used = [entry.get("BACKEND") for entry in getattr(settings, "TASKS", {}).values()]
        if "django_batches.tasks.BatchesBackend" in used:
            # Ignore a missing Tasks framework here: when the backend is used, its import names the package to install.
            with suppress(ModuleNotFoundError):
                _tasks().refuse_others()


def _tasks() -> Any:
    # Import this late: it needs the models, and a Tasks framework that may not be installed.
    from . import tasks  # noqa: PLC0415

    return tasks
