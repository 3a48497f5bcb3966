from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _

from .checks import check_settings
from .deploy_checks import check_redis


class DjangoBatchesConfig(AppConfig):
    name = "django_batches"
    verbose_name = _("Batches")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        register(check_settings)
        register(check_redis, deploy=True)
