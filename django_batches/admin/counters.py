"""How many jobs of a batch there are of each kind, in the words of the pages: they add up to the total."""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from ..models import Batch
from ..monitoring import tree


@dataclass(frozen=True)
class Counter:
    name: str
    """The status filter of these jobs."""
    word: str
    count: int


def counters(batch: Batch) -> dict[str, Counter]:
    """By their names; "waiting" only where jobs wait for child batches."""
    in_flight = min(batch.in_flight, batch.pending)
    # Counted in a statement of its own: what has moved since the batch was read must not make the rest negative.
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
