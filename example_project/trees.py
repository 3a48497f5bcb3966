"""The tree of batches below a batch."""

from django.db.models import Q

from django_batches.models import Batch


def tree_of(batch: Batch) -> list[Batch]:
    """Returns the batch and all batches below it that jobs and callbacks opened, level by level."""
    level, tree = list(Batch.objects.filter(pk=batch.pk)), []
    while level:
        tree += level
        level = list(Batch.objects.filter(Q(parent__batch__in=level) | Q(parent__callback_of__in=level)))
    return tree
