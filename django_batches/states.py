"""The statuses of batches and jobs, and the events of a batch.

The transitions of a job. Each statement in `transitions` is guarded by one of them::

    created ──claim──▶ queued ──seen with a lease──▶ running
    queued, running ──outcome──▶ succeeded | failed | cancelled
    queued, running ──attempt failed──▶ scheduled (a later attempt) | created (at once)
    queued, running ──on hold, lost or vanished──▶ created
    queued, running ──returned with open child batches──▶ waiting
    waiting ──the last child has ended──▶ succeeded | failed | cancelled
    queued, running ──its function does not exist yet──▶ scheduled (no attempt is used)
    created, scheduled, queued, running, waiting ──success of an earlier run that counted as lost──▶ succeeded
    scheduled ──due──▶ created
    created, scheduled ──cancel──▶ cancelled
    failed, cancelled ──retry──▶ created | waiting (if its children failed)
"""

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _

__all__ = ["BatchStatus", "Event", "JobStatus"]


class BatchStatus(TextChoices):
    OPEN = "open", _("open")
    """Its creator still adds jobs, so it cannot end yet."""
    RUNNING = "running", _("running")
    """Sealed; at least one job has not ended."""
    SUCCEEDED = "succeeded", _("succeeded")
    """Every job succeeded."""
    FAILED = "failed", _("failed")
    """Ended, and at least one job failed or was cancelled individually."""
    CANCELLED = "cancelled", _("cancelled")
    """Ended after `cancel()`, or because it was never sealed."""


class JobStatus(TextChoices):
    CREATED = "created", _("created")
    """Waits in the database to be dispatched."""
    QUEUED = "queued", _("queued")
    """Dispatched to RQ. A worker may have started it within the last seconds."""
    RUNNING = "running", _("running")
    """A worker holds a lease on it."""
    WAITING = "waiting", _("waiting")
    """Its function has returned. It ends with the child batches that it opened."""
    SCHEDULED = "scheduled", _("scheduled")
    """Waits for `due_at`."""
    SUCCEEDED = "succeeded", _("succeeded")
    FAILED = "failed", _("failed")
    """Failed for good: no attempt is left."""
    CANCELLED = "cancelled", _("cancelled")


class Event(TextChoices):
    SUCCESS = "success", _("success")
    """Every job succeeded."""
    FAILURE = "failure", _("failure")
    """The first job failed for good. Happens at once, while other jobs still run."""
    FINISH = "finish", _("finish")
    """The batch has ended, with whatever status."""
    ATTEMPTED = "attempted", _("attempted")
    """Every job has been tried at least once."""


BATCH_ENDED = (BatchStatus.SUCCEEDED, BatchStatus.FAILED, BatchStatus.CANCELLED)
JOB_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)

IN_FLIGHT = (JobStatus.QUEUED, JobStatus.RUNNING)
"""In RQ. Only an outcome ends it, because the database cannot know whether it has started."""

WAITING_HERE = (JobStatus.CREATED, JobStatus.SCHEDULED)
"""Not in RQ. It can be cancelled or put on hold at once."""
