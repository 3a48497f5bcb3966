"""The querysets of batches and jobs."""

from typing import TYPE_CHECKING

from django.db import models

from .. import database
from ..transitions import deleting, retrying
from .decorators import alters_data, twin

if TYPE_CHECKING:
    from .batch import Batch  # noqa: F401
    from .job import BatchJob  # noqa: F401 (in the quoted bases below)


@alters_data
class BatchQuerySet(models.QuerySet["Batch"]):
    def delete(self) -> tuple[int, dict[str, int]]:
        """Deletes the batches with their jobs, in chunks. Raises `BatchError` at the first one that has not ended."""
        label = self.model._meta.app_label
        ids = list(self.using(database.alias()).values_list("pk", flat=True))  # not from a replica, which may lag
        # Django's own delete() would load all jobs, and also delete batches that began to match since the check.
        jobs = sum(deleting.delete(batch_id) for batch_id in ids)
        return len(ids) + jobs, {f"{label}.Batch": len(ids), f"{label}.BatchJob": jobs}

    delete.queryset_only = True  # type: ignore[attr-defined]


@alters_data
class BatchJobQuerySet(models.QuerySet["BatchJob"]):
    def retry(self) -> int:
        """Runs the failed and cancelled jobs of this queryset again, and returns how many."""
        return retrying.retry_jobs(self)

    aretry = twin(retry)

    def delete(self) -> tuple[int, dict[str, int]]:
        raise TypeError("Jobs cannot be deleted, because their batch counts them: delete the batch.")

    delete.queryset_only = True  # type: ignore[attr-defined]
