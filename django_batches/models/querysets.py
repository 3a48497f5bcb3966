"""Verbs on many rows."""

from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.db import models

from .. import database
from ..transitions import deleting, retrying

if TYPE_CHECKING:
    from .batch import Batch  # noqa: F401
    from .job import BatchJob  # noqa: F401 (in the quoted bases below)


class BatchQuerySet(models.QuerySet["Batch"]):
    def delete(self) -> tuple[int, dict[str, int]]:
        """Deletes ended batches with their jobs, in chunks; raises `BatchError` at the first that has not ended."""
        label = self.model._meta.app_label
        ids = list(self.using(database.alias()).values_list("pk", flat=True))  # a replica may not have them yet
        # By these keys alone: a batch that has come to match meanwhile would go by a cascade that loads its jobs.
        jobs = sum(deleting.delete(batch_id) for batch_id in ids)
        return len(ids) + jobs, {f"{label}.Batch": len(ids), f"{label}.BatchJob": jobs}

    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]


class BatchJobQuerySet(models.QuerySet["BatchJob"]):
    def retry(self) -> int:
        """Runs those of the jobs again that failed or were cancelled; returns how many."""
        return retrying.retry_jobs(self)

    async def aretry(self) -> int:
        """Asynchronous twin of `retry`."""
        return await sync_to_async(self.retry)()

    retry.alters_data = True  # type: ignore[attr-defined]
    aretry.alters_data = True  # type: ignore[attr-defined]

    def delete(self) -> tuple[int, dict[str, int]]:
        raise TypeError("Jobs are counted by their batch: delete the batch.")

    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]
