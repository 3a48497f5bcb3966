"""The statuses of batches and jobs, and the events of a batch.

These are the transitions of a job. Each statement in `transitions` checks that it makes one of them::

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
    """The creator may still add jobs, so the batch cannot end yet."""
    RUNNING = "running", _("running")
    """The batch is sealed, and has not ended."""
    SUCCEEDED = "succeeded", _("succeeded")
    """Every job succeeded."""
    FAILED = "failed", _("failed")
    """The batch has ended, and at least one job failed or was cancelled individually."""
    CANCELLED = "cancelled", _("cancelled")
    """The batch has ended after `cancel()`, or because it was never sealed."""


class JobStatus(TextChoices):
    CREATED = "created", _("created")
    """The job waits in the database to be dispatched."""
    QUEUED = "queued", _("queued")
    """The job was pushed to RQ. A worker may have started it within the last seconds."""
    RUNNING = "running", _("running")
    """A worker holds a lease on the job."""
    WAITING = "waiting", _("waiting")
    """The function has returned. The job ends when the child batches that it opened have ended."""
    SCHEDULED = "scheduled", _("scheduled")
    """The job waits for `due_at`."""
    SUCCEEDED = "succeeded", _("succeeded")
    FAILED = "failed", _("failed")
    """The job failed for good: no further attempt follows."""
    CANCELLED = "cancelled", _("cancelled")


class Event(TextChoices):
    SUCCESS = "success", _("success")
    """Every job succeeded."""
    FAILURE = "failure", _("failure")
    """The first job failed for good; other jobs may still run. Also happens if the batch misses its deadline."""
    FINISH = "finish", _("finish")
    """The batch has ended, whatever its status."""
    ATTEMPTED = "attempted", _("attempted")
    """Every job has had at least one attempt."""


BATCH_ENDED = (BatchStatus.SUCCEEDED, BatchStatus.FAILED, BatchStatus.CANCELLED)
JOB_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)

IN_FLIGHT = (JobStatus.QUEUED, JobStatus.RUNNING)
"""The job is in RQ. Only an outcome can end it, because the database cannot know whether it has started."""

WAITING_HERE = (JobStatus.CREATED, JobStatus.SCHEDULED)
"""The job is not in RQ, and has not started. It can be cancelled or put on hold at once."""
