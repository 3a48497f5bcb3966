"""The lease of the active coordinator."""

from django.db import models


class Lease(models.Model):
    """The only row says which process is the active coordinator. The database's clock decides when it expires."""

    name = models.CharField(primary_key=True, max_length=20)
    holder = models.CharField(max_length=200)
    token = models.PositiveBigIntegerField(default=0)
    """Increases with each new holder. Redis refuses the pushes of a holder with an older token."""
    expires_at = models.DateTimeField()
    namespace = models.CharField(max_length=100, default="")
    """The holder's setting NAMESPACE. A process with another NAMESPACE would use other keys in Redis."""

    class Meta:
        app_label = "django_batches"

    def __str__(self) -> str:
        return f"{self.holder} ({self.token})"
