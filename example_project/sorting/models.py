"""The ledger of the merge sort, independent of the rows of django_batches, to check them."""

from django.db import models


class Run(models.Model):
    """One run of a function as a job. If a job runs twice, there are two rows."""

    job = models.UUIDField()
    func = models.CharField("function", max_length=20)
    has_succeeded = models.BooleanField("succeeded")

    def __str__(self) -> str:
        return f"{self.func} {'succeeded' if self.has_succeeded else 'failed'}"
