"""A batch with all that hangs below it."""

from django.db.models import Q

from django_batches.models import Batch


def tree_of(batch: Batch) -> list[Batch]:
    """The batch and all batches that its jobs and callbacks opened, and theirs, level by level."""
    level, tree = list(Batch.objects.filter(pk=batch.pk)), []
    while level:
        tree += level
        level = list(Batch.objects.filter(Q(parent__batch__in=level) | Q(parent__callback_of__in=level)))
    return tree
