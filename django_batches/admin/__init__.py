"""The admin: a list of batches, a page of each, its jobs, and what can be done with them.

`BatchAdmin` is made of mixins, so that another admin theme can take the logic::

    class BatchAdmin(BatchAdminMixin, unfold.admin.ModelAdmin): ...
"""

from django.contrib import admin

from ..models import Batch
from .action_views import ActingMixin
from .confirmation import ConfirmingMixin
from .jobs import JobsMixin
from .listing import ListMixin
from .live import LiveMixin
from .page import PageMixin
from .permissions import PermissionsMixin

__all__ = [
    "ActingMixin",
    "BatchAdmin",
    "BatchAdminMixin",
    "ConfirmingMixin",
    "JobsMixin",
    "ListMixin",
    "LiveMixin",
    "PageMixin",
    "PermissionsMixin",
]


class BatchAdminMixin(ListMixin, PageMixin, LiveMixin, JobsMixin, ActingMixin, PermissionsMixin):
    """Everything that the admin of batches can do, without a ModelAdmin."""


@admin.register(Batch)
class BatchAdmin(BatchAdminMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    """The admin of batches in Django's own look."""
