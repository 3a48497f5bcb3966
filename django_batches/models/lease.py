"""The lease of the active coordinator."""

from django.db import models


class Lease(models.Model):
    """Which process is the active coordinator: one row, whose expiry the database's clock decides."""

    name = models.CharField(primary_key=True, max_length=20)
    holder = models.CharField(max_length=200)
    token = models.PositiveBigIntegerField(default=0)
    """+1 with each new holder; whatever the holder writes to Redis carries it."""
    expires_at = models.DateTimeField()
    namespace = models.CharField(max_length=100, default="")
    """The holder's setting NAMESPACE. A process with another one would use other keys in Redis."""

    class Meta:
        app_label = "django_batches"

    def __str__(self) -> str:
        return f"{self.holder} ({self.token})"
