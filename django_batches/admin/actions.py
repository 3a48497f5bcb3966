"""The actions on batches and jobs: when each is possible, how many jobs it affects, and what the pages say about it.

The buttons, the confirmation pages and the changelist actions all use these definitions.
"""

from collections.abc import Callable
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext as _, gettext_lazy, ngettext

from ..models import Batch, BatchJob
from ..models.aggregates import FailureGroup
from ..models.querysets import BatchJobQuerySet
from ..monitoring.formatting import number
from ..states import BATCH_ENDED, WAITING_HERE, JobStatus
from .job_rows import RETRYABLE


@dataclass(frozen=True)
class Target:
    """What an action applies to: a batch, or a job, callback or failure group of that batch."""

    batch: Batch
    job: BatchJob | None = None
    group: FailureGroup | None = None
    include_cancelled: bool = False
    reason: str = ""

    @property
    def failures(self) -> BatchJobQuerySet:
        assert self.group is not None
        return self.batch.jobs.filter(status=JobStatus.FAILED, fingerprint=self.group.fingerprint)

    @property
    def is_settled(self) -> bool:
        batch = self.batch
        return not batch.deleting_at and (batch.finished_at is not None or not batch.cancelled_at)

    @property
    def not_started(self) -> int:
        return self.batch.pending - self.batch.in_flight


@dataclass(frozen=True)
class Action:
    name: str
    permission: str
    """retry, cancel or delete: see `PermissionsMixin`."""
    label: Promise
    question: Promise
    explanation: Promise
    is_possible: Callable[[Target], bool]
    run: Callable[[Target], int]
    """Performs the action and returns the number of jobs (or batches) that changed."""
    message: Callable[[int, int], str]
    """The message to the user, given the numbers of changed and of skipped jobs."""
    count: Callable[[Target], int] = lambda target: 1
    """Returns the number of jobs that the action affects, from the counters of the batch."""
    is_dangerous: bool = False
    changelist_label: Promise | str = ""
    """The label in the changelist; empty if the changelist does not have this action."""
    child_effect: Promise | None = None
    """Describes what the action does to child batches; None if it does nothing to them."""


def _retried(count: int, skipped: int) -> str:
    text = ngettext("%(count)s job re-queued", "%(count)s jobs re-queued", count) % {"count": number(count)}
    return _("%(done)s, %(skipped)s skipped.") % {"done": text, "skipped": number(skipped)}


def _cancelled(count: int, running: int) -> str:
    text = ngettext("%(count)s job cancelled.", "%(count)s jobs cancelled.", count) % {"count": number(count)}
    return " ".join([text, _("Running jobs finish first.")]) if running else text


def _done(text: Promise) -> Callable[[int, int], str]:
    nothing = gettext_lazy("Nothing to do: the batch is already in this state, or has ended.")
    return lambda count, skipped: str(text if count else nothing)


RETRY_EXPLANATION = gettext_lazy(
    "Jobs start again with their first attempt. A batch that has ended runs again, and calls its callbacks again."
)
RETRY_CHILDREN = gettext_lazy(
    "A job that failed because of its child batch does not run again. "
    "Instead, the failed jobs of the child batch are retried, at every level."
)

RETRY = Action(
    "retry", "retry", gettext_lazy("Retry failed"), gettext_lazy("Run the failed jobs again?"), RETRY_EXPLANATION,
    is_possible=lambda target: target.is_settled and bool(target.batch.failed or target.batch.cancelled),
    count=lambda target: target.batch.failed + (target.batch.cancelled if target.include_cancelled else 0),
    run=lambda target: target.batch.retry_failed(include_cancelled=target.include_cancelled),
    changelist_label=gettext_lazy("Retry failed jobs of selected batches"),
    message=_retried, child_effect=RETRY_CHILDREN,
)  # fmt: skip
RETRY_GROUP = Action(
    "retry-group", "retry", gettext_lazy("Retry these"),
    gettext_lazy("Run the jobs that failed with this error again?"), RETRY_EXPLANATION,
    is_possible=lambda target: target.is_settled and target.group is not None and target.group.count > 0,
    count=lambda target: target.group.count if target.group else 0, run=lambda target: target.failures.retry(),
    message=_retried, child_effect=RETRY_CHILDREN,
)  # fmt: skip
RETRY_JOB = Action(
    "retry-job", "retry", gettext_lazy("Retry"), gettext_lazy("Run this job again?"), RETRY_EXPLANATION,
    is_possible=lambda target: target.is_settled and target.job is not None and target.job.status in RETRYABLE,
    run=lambda target: int(target.job is not None and target.job.retry()),
    message=_retried, child_effect=RETRY_CHILDREN,
)  # fmt: skip
CANCEL = Action(
    "cancel", "cancel", gettext_lazy("Cancel"), gettext_lazy("Cancel this batch?"),
    gettext_lazy("Jobs that have not started are cancelled now. Running jobs finish, and their outcomes count."),
    is_possible=lambda target: target.batch.finished_at is None and not target.batch.cancelled_at,
    count=lambda target: target.not_started, run=lambda target: target.batch.cancel(target.reason),
    changelist_label=gettext_lazy("Cancel selected batches"), message=_cancelled, is_dangerous=True,
    child_effect=gettext_lazy("The child batches of its jobs are cancelled too, at every level."),
)  # fmt: skip
CANCEL_JOB = Action(
    "cancel-job", "cancel", gettext_lazy("Cancel"), gettext_lazy("Cancel this job?"),
    gettext_lazy("The job does not run. Unless it is a callback, its batch can no longer succeed."),
    is_possible=lambda target: target.job is not None and target.job.status in WAITING_HERE,
    run=lambda target: int(target.job is not None and target.job.cancel()), message=_cancelled, is_dangerous=True,
)  # fmt: skip
PAUSE = Action(
    "pause", "cancel", gettext_lazy("Pause"), gettext_lazy("Pause this batch?"),
    gettext_lazy("No more jobs start until you resume the batch. Running jobs finish."),
    is_possible=lambda target: target.is_settled and not (target.batch.finished_at or target.batch.is_paused),
    count=lambda target: target.not_started, run=lambda target: int(target.batch.pause()),
    changelist_label=gettext_lazy("Pause selected batches"), message=_done(gettext_lazy("Paused.")),
    child_effect=gettext_lazy("Child batches continue to run. Pause them on their own pages."),
)  # fmt: skip
RESUME = Action(
    "resume", "cancel", gettext_lazy("Resume"), gettext_lazy("Resume this batch?"),
    gettext_lazy("Its remaining jobs can start again."),
    is_possible=lambda target: target.is_settled and target.batch.is_paused and not target.batch.finished_at,
    count=lambda target: target.batch.pending, run=lambda target: int(target.batch.resume()),
    changelist_label=gettext_lazy("Resume selected batches"), message=_done(gettext_lazy("Resumed.")),
)  # fmt: skip
SEAL = Action(
    "seal", "cancel", gettext_lazy("Seal"), gettext_lazy("Seal this batch?"),
    gettext_lazy(
        "No more jobs can be added from outside the batch, and it ends once its jobs have ended. "
        "Seal a batch if the process that created it has died."
    ),
    is_possible=lambda target: not (target.batch.sealed_at or target.batch.cancelled_at or target.batch.finished_at),
    count=lambda target: target.batch.total, run=lambda target: int(target.batch.seal()),
    message=_done(gettext_lazy("Sealed.")),
)  # fmt: skip
DELETE = Action(
    "delete", "delete", gettext_lazy("Delete"), gettext_lazy("Delete this batch and all its jobs?"),
    gettext_lazy("Its jobs, results and failures are deleted permanently. Large batches are deleted in chunks."),
    is_possible=lambda target: target.batch.status in BATCH_ENDED and not target.batch.open_callbacks,
    count=lambda target: target.batch.total, run=lambda target: target.batch.delete()[0],
    changelist_label=gettext_lazy("Delete selected batches"),
    message=_done(gettext_lazy("Deleted.")), is_dangerous=True,
    child_effect=gettext_lazy("Its child batches are deleted too, at every level. All of them must have ended."),
)  # fmt: skip

BATCH_ACTIONS = (RETRY, RESUME, PAUSE, SEAL, CANCEL, DELETE)
"""In the order of the buttons."""
ACTIONS = {action.name: action for action in (*BATCH_ACTIONS, RETRY_GROUP, RETRY_JOB, CANCEL_JOB)}
