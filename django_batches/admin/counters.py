"""The numbers of jobs of a batch by kind."""

from django.utils.translation import gettext as _

from ..models import Batch
from ..monitoring import tree


def counters(batch: Batch) -> list[tuple[str, str, int]]:
    """Numbers that add up to the total: (value of the status filter, label, number).

    "waiting" is missing if no job waits for child batches.
    """
    in_flight = min(batch.in_flight, batch.pending)
    left = batch.pending - in_flight
    # A separate query, made later than that of the batch: without `min`, "to run" could become negative.
    waiting = min(tree.waiting_jobs(batch).order_by().count(), left) if left else 0
    return [
        ("succeeded", _("succeeded"), batch.succeeded),
        ("failed", _("failed"), batch.failed),
        ("cancelled", _("cancelled"), batch.cancelled),
        ("in_flight", _("running or queued"), in_flight),
        *([("waiting", _("waiting for child batches"), waiting)] if waiting else []),
        ("to_run", _("to run"), left - waiting),
    ]
