"""Who may do what. Nobody adds or edits rows by hand; the permissions of `Batch` decide the rest."""

from typing import TYPE_CHECKING

from django.http import HttpRequest

from ..database import APP
from ..models import Batch

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    Base = ModelAdmin[Batch]
else:
    Base = object


class PermissionsMixin(Base):
    """`obj` is the batch where one is concerned: override these for permissions per object."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Batch | None = None) -> bool:
        return False

    def has_retry_permission(self, request: HttpRequest, obj: Batch | None = None) -> bool:
        """Retry of all, of a group of failures, of one job or callback."""
        return request.user.has_perm(f"{APP}.retry_batch")

    def has_cancel_permission(self, request: HttpRequest, obj: Batch | None = None) -> bool:
        """Cancel of the batch or of one job; pause, resume, seal."""
        return request.user.has_perm(f"{APP}.cancel_batch")

    def has_arguments_permission(self, request: HttpRequest, obj: Batch | None = None) -> bool:
        """A look at the arguments and results of jobs, which may be personal data."""
        return request.user.has_perm(f"{APP}.view_job_arguments")

    def may(self, request: HttpRequest, permission: str, batch: Batch | None = None) -> bool:
        """Whether the user may see the batch and has the permission for it: retry, cancel, delete or arguments."""
        allowed: bool = getattr(self, f"has_{permission}_permission")(request, batch)
        return allowed and self.has_view_permission(request, batch)
