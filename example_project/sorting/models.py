"""A ledger of the runs of the merge sort. It does not use the rows of django_batches, so it can check them."""

from django.db import models


class Run(models.Model):
    """One run of a function as a job. If a job runs twice, there are two rows."""

    job = models.UUIDField()
    func = models.CharField("function", max_length=20)
    has_succeeded = models.BooleanField("succeeded")

    def __str__(self) -> str:
        return f"{self.func} {'succeeded' if self.has_succeeded else 'failed'}"
