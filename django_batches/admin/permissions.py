"""Permissions. No user can add or edit rows; the permissions of `Batch` decide everything else."""

from typing import TYPE_CHECKING, Any

from django.http import HttpRequest

from ..database import APP
from ..models import Batch

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    Base = ModelAdmin[Batch]
else:
    Base = object


class PermissionsMixin(Base):
    """Override these methods for object permissions: `obj` is the batch, or None for the changelist."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Batch | None = None) -> bool:
        return False

    def has_retry_permission(self, request: HttpRequest, obj: Batch | None = None) -> bool:
        """Whether the user may retry a batch, a failure group, or a single job or callback."""
        return request.user.has_perm(f"{APP}.retry_batch")

    def has_cancel_permission(self, request: HttpRequest, obj: Batch | None = None) -> bool:
        """Whether the user may cancel a batch or a single job, and pause, resume and seal a batch."""
        return request.user.has_perm(f"{APP}.cancel_batch")

    def has_arguments_permission(self, request: HttpRequest, obj: Batch | None = None) -> bool:
        """Whether the user may view the arguments and results of jobs, which may be personal data."""
        return request.user.has_perm(f"{APP}.view_job_arguments")

    def may(self, request: HttpRequest, permission: str, batch: Batch | None = None) -> bool:
        """Whether the user may view the batch and has the permission: retry, cancel, delete or arguments."""
        allowed: bool = getattr(self, f"has_{permission}_permission")(request, batch)
        return allowed and self.has_view_permission(request, batch)

    def job_context(self, request: HttpRequest, batch: Batch) -> dict[str, Any]:
        """Returns the context that the template of a job (`job.html`) needs."""
        may = {f"may_{name}": self.may(request, name, batch) for name in ("retry", "cancel", "arguments")}
        return {"batch": batch, "admin_name": self.admin_site.name, **may}
