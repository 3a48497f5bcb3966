"""Counts that the admin shows: ended jobs per time bucket, and failures per exception and place in the code."""

from typing import ClassVar

from django.db import models

from ..transitions.statistics import BUCKET_SECONDS


class TimeBucket(models.Model):
    """How many jobs of a batch ended in one time bucket. The transaction that ends the jobs also counts them here."""

    SECONDS: ClassVar = BUCKET_SECONDS

    batch = models.ForeignKey("Batch", models.DO_NOTHING, related_name="buckets", db_index=False)
    starts_at = models.DateTimeField()
    succeeded = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    cancelled = models.PositiveIntegerField(default=0)

    class Meta:
        app_label = "django_batches"
        constraints: ClassVar = [models.UniqueConstraint(fields=["batch", "starts_at"], name="bucket_unique")]

    def __str__(self) -> str:
        return f"{self.starts_at:%H:%M:%S}"


class FailureGroup(models.Model):
    """How many jobs of a batch failed for good with the same exception at the same place in the code."""

    batch = models.ForeignKey("Batch", models.DO_NOTHING, related_name="failure_groups", db_index=False)
    fingerprint = models.CharField(max_length=16)
    error_type = models.CharField(max_length=200)
    sample = models.TextField()
    count = models.IntegerField(default=0)

    class Meta:
        app_label = "django_batches"
        constraints: ClassVar = [models.UniqueConstraint(fields=["batch", "fingerprint"], name="failure_group_unique")]

    def __str__(self) -> str:
        return f"{self.error_type} ({self.count})"
