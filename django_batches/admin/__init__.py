"""The admin: the changelist of batches, the page of a batch, its jobs, and the actions on them.

`BatchAdmin` consists of mixins, so that you can use them with another admin theme::

    class BatchAdmin(BatchAdminMixin, unfold.admin.ModelAdmin): ...
"""

from django.contrib import admin

from ..models import Batch
from .action_views import ActingMixin
from .batch_page import LiveMixin, PageMixin
from .changelist import ListMixin
from .confirmation import ConfirmingMixin
from .jobs_page import JobsMixin
from .permissions import PermissionsMixin

__all__ = [
    "ActingMixin", "BatchAdmin", "BatchAdminMixin", "ConfirmingMixin", "JobsMixin", "ListMixin", "LiveMixin",
    "PageMixin", "PermissionsMixin",
]  # fmt: skip


class BatchAdminMixin(ListMixin, PageMixin, LiveMixin, JobsMixin, ActingMixin, PermissionsMixin):
    """The whole admin of batches, without a base `ModelAdmin`."""


@admin.register(Batch)
class BatchAdmin(BatchAdminMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    """The admin of batches for Django's own theme."""
