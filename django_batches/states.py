"""The statuses of batches and jobs, and the events of a batch.

The legal edges of a job (the guard of every statement in `transitions` is one of these)::

    created ──claim──▶ queued ──seen with a lease──▶ running
    queued, running ──outcome──▶ succeeded | failed | cancelled
    queued, running ──attempt failed──▶ scheduled (a later attempt) | created (at once)
    queued, running ──held, lost or vanished──▶ created
    queued, running ──returned, but has open child batches──▶ waiting
    waiting ──the last child has ended──▶ succeeded | failed | cancelled
    queued, running ──its function is not here yet──▶ scheduled (no attempt is used)
    created, scheduled, queued, running, waiting ──an earlier run, taken for lost, tells its success──▶ succeeded
    scheduled ──due──▶ created
    created, scheduled ──cancel──▶ cancelled
    failed, cancelled ──retry──▶ created | waiting (where its children had failed)
"""

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _

__all__ = ["BatchStatus", "Event", "JobStatus"]


class BatchStatus(TextChoices):
    OPEN = "open", _("open")
    """Jobs are still being added by its creator: it cannot end yet."""
    RUNNING = "running", _("running")
    """Sealed; at least one job has not ended."""
    SUCCEEDED = "succeeded", _("succeeded")
    """Every job succeeded."""
    FAILED = "failed", _("failed")
    """Ended, and at least one job failed or was cancelled alone."""
    CANCELLED = "cancelled", _("cancelled")
    """Ended after `cancel()`, or because nobody sealed it."""


class JobStatus(TextChoices):
    CREATED = "created", _("created")
    """Waits in the database for its place in the queue."""
    QUEUED = "queued", _("queued")
    """Handed to RQ; a worker may have started it within the last seconds."""
    RUNNING = "running", _("running")
    """A worker holds a lease on it."""
    WAITING = "waiting", _("waiting")
    """Its function has returned; it ends with the child batches that it opened."""
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
    """The first job failed for good; told at once, while the others go on."""
    FINISH = "finish", _("finish")
    """The batch has ended, whatever way."""
    ATTEMPTED = "attempted", _("attempted")
    """Every job has been tried at least once."""


BATCH_ENDED = (BatchStatus.SUCCEEDED, BatchStatus.FAILED, BatchStatus.CANCELLED)
JOB_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)

IN_FLIGHT = (JobStatus.QUEUED, JobStatus.RUNNING)
"""In RQ: ends only by an outcome, because the database cannot know whether it has started."""

WAITING_HERE = (JobStatus.CREATED, JobStatus.SCHEDULED)
"""Not in RQ: may be cancelled or held at once."""
