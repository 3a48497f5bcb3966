"""The numbers of jobs of a batch by kind, with their labels. They add up to the total."""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from ..models import Batch
from ..monitoring import tree


@dataclass(frozen=True)
class Counter:
    name: str
    """The value of the status filter for these jobs."""
    label: str
    count: int


def counters(batch: Batch) -> dict[str, Counter]:
    """The counters by name. "waiting" is missing if no job waits for child batches."""
    in_flight = min(batch.in_flight, batch.pending)
    # A separate query, made later than that of the batch: without `min`, "to run" could become negative.
    waiting = min(tree.count_waiting(batch), batch.pending - in_flight)
    found = [
        Counter("succeeded", _("succeeded"), batch.succeeded),
        Counter("failed", _("failed"), batch.failed),
        Counter("cancelled", _("cancelled"), batch.cancelled),
        Counter("in_flight", _("running or queued"), in_flight),
        Counter("waiting", _("waiting for child batches"), waiting),
        Counter("to_run", _("to run"), batch.pending - in_flight - waiting),
    ]
    return {counter.name: counter for counter in found if counter.count or counter.name != "waiting"}
