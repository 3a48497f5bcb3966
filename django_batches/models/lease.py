"""The lease of the active coordinator."""

from django.db import models


class Lease(models.Model):
    """Who keeps the books: one row, judged by the database's clock."""

    name = models.CharField(primary_key=True, max_length=20)
    holder = models.CharField(max_length=200)
    token = models.PositiveBigIntegerField(default=0)
    """+1 with each new holder; everything that the holder writes to Redis carries it."""
    expires_at = models.DateTimeField()
    namespace = models.CharField(max_length=100, default="")
    """The holder's setting NAMESPACE: a process with another one would talk past it."""

    class Meta:
        app_label = "django_batches"

    def __str__(self) -> str:
        return f"{self.holder} ({self.token})"
