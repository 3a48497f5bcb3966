from contextlib import suppress

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import register
from django.utils.translation import gettext_lazy as _

from .checks import check_settings
from .deploy_checks import check_redis
from .functions import framework


class DjangoBatchesConfig(AppConfig):
    name = "django_batches"
    verbose_name = _("Batches")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        register(check_settings)
        register(check_redis, deploy=True)
        used = [entry.get("BACKEND") for entry in getattr(settings, "TASKS", {}).values()]
        if "django_batches.tasks.BatchesBackend" in used:
            # Without the framework there are no Tasks either; the import of django_batches.tasks tells what to install.
            with suppress(ModuleNotFoundError):
                framework().refuse_others()
