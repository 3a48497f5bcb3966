"""What can be done with a batch: whether it is possible, how many jobs it concerns, what to ask and what to say.

One table for the buttons, the confirmation pages and the actions of the list.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from ..models import Batch, BatchJob, FailureGroup
from ..models.querysets import BatchJobQuerySet
from ..monitoring.formatting import number
from ..states import BATCH_ENDED, WAITING_HERE, JobStatus


@dataclass(frozen=True)
class Target:
    """What an act is done to: a batch, or one job, callback or group of failures in it."""

    batch: Batch
    job: BatchJob | None = None
    group: FailureGroup | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """What the user chose on the confirmation page: `include_cancelled`, `reason`."""

    @property
    def failures(self) -> BatchJobQuerySet:
        """The failed jobs of the group."""
        assert self.group is not None
        found = self.batch.jobs.filter(status=JobStatus.FAILED, fingerprint=self.group.fingerprint)
        return found


@dataclass(frozen=True)
class Act:
    """One thing that can be done."""

    name: str
    permission: str
    """retry, cancel or delete: see `PermissionsMixin`."""
    label: Promise
    question: Promise
    explanation: Promise
    is_possible: Callable[[Target], bool]
    count: Callable[[Target], int]
    """Jobs that it concerns, by the counters of the batch."""
    run: Callable[[Target], int]
    """Does it; how many jobs (or batches) it changed."""
    say: Callable[[int, int], str]
    """The message: how many it changed, how many of those asked for were no longer to be changed."""
    is_dangerous: bool = False
    below: Promise | None = None
    """What becomes of child batches; None where nothing does."""


RETRY_BELOW = gettext_lazy(
    "A job that failed by its child batch is not run again: the retry goes on inside that batch, level by level."
)
CANCEL_BELOW = gettext_lazy("The child batches of its jobs are cancelled with it, level by level.")
PAUSE_BELOW = gettext_lazy("Child batches go on: pause them on their own pages.")
DELETE_BELOW = gettext_lazy(
    "Its child batches, and those below them, are deleted with it. All of them must have ended."
)


def possible(batch: Batch) -> list[Act]:
    """What can be done with the batch as a whole now, in the order of the buttons."""
    return [act for act in WHOLE if act.is_possible(Target(batch))]


def _is_settled(batch: Batch) -> bool:
    """Nobody is in the middle of cancelling or deleting it."""
    return not batch.deleting_at and (batch.finished_at is not None or not batch.cancelled_at)


def _can_retry_job(target: Target) -> bool:
    ended = (JobStatus.FAILED, JobStatus.CANCELLED)
    return _is_settled(target.batch) and target.job is not None and target.job.status in ended


def _can_cancel_job(target: Target) -> bool:
    return target.job is not None and target.job.status in WAITING_HERE


def _can_delete(target: Target) -> bool:
    batch = target.batch
    return batch.status in BATCH_ENDED and not batch.open_callbacks


def _retry_job(target: Target) -> int:
    assert target.job is not None
    return int(target.job.retry())


def _cancel_job(target: Target) -> int:
    assert target.job is not None
    return int(target.job.cancel())


def _delete(target: Target) -> int:
    target.batch.delete()
    return 1


def _said_retried(count: int, skipped: int) -> str:
    text = ngettext("%(count)s job re-queued", "%(count)s jobs re-queued", count) % {"count": number(count)}
    return _("%(done)s, %(skipped)s skipped.") % {"done": text, "skipped": number(skipped)}


def _said_cancelled(count: int, skipped: int) -> str:
    text = ngettext("%(count)s job cancelled.", "%(count)s jobs cancelled.", count) % {"count": number(count)}
    return f"{text} {_('What runs finishes first.')}" if skipped else text


PAUSED, NOT_PAUSED = gettext_lazy("Paused."), gettext_lazy("Nothing to pause: it is paused already, or has ended.")
RESUMED, NOT_RESUMED = gettext_lazy("Resumed."), gettext_lazy("Nothing to resume: it is not paused.")
SEALED, NOT_SEALED = gettext_lazy("Sealed."), gettext_lazy("Nothing to seal: it is sealed already, or has ended.")
DELETED, NOT_DELETED = gettext_lazy("Deleted."), gettext_lazy("Nothing was deleted.")


RETRY = Act(
    "retry", "retry", gettext_lazy("Retry failed"),
    gettext_lazy("Run the failed jobs again?"),
    gettext_lazy(
        "They start from their first attempt. A batch that had ended runs again, and tells its callbacks again."
    ),
    is_possible=lambda target: _is_settled(target.batch) and bool(target.batch.failed or target.batch.cancelled),
    count=lambda target: target.batch.failed + (
        target.batch.cancelled if target.options.get("include_cancelled") else 0
    ),
    run=lambda target: target.batch.retry_failed(include_cancelled=bool(target.options.get("include_cancelled"))),
    say=_said_retried, below=RETRY_BELOW,
)  # fmt: skip
RETRY_GROUP = Act(
    "retry-group", "retry", gettext_lazy("Retry these"),
    gettext_lazy("Run the jobs that failed this way again?"),
    RETRY.explanation,
    is_possible=lambda target: _is_settled(target.batch) and target.group is not None and target.group.count > 0,
    count=lambda target: target.group.count if target.group else 0,
    run=lambda target: target.failures.retry(),
    say=_said_retried, below=RETRY_BELOW,
)  # fmt: skip
RETRY_JOB = Act(
    "retry-job", "retry", gettext_lazy("Retry"),
    gettext_lazy("Run this job again?"),
    RETRY.explanation,
    is_possible=_can_retry_job, count=lambda target: 1, run=_retry_job, say=_said_retried, below=RETRY_BELOW,
)  # fmt: skip
CANCEL = Act(
    "cancel", "cancel", gettext_lazy("Cancel"),
    gettext_lazy("Cancel this batch?"),
    gettext_lazy("Jobs that have not started end at once. Jobs that run finish, and count as what they become."),
    is_possible=lambda target: target.batch.finished_at is None and not target.batch.cancelled_at,
    count=lambda target: target.batch.pending - target.batch.in_flight,
    run=lambda target: target.batch.cancel(target.options.get("reason", "")),
    say=_said_cancelled, is_dangerous=True, below=CANCEL_BELOW,
)  # fmt: skip
CANCEL_JOB = Act(
    "cancel-job", "cancel", gettext_lazy("Cancel"),
    gettext_lazy("Cancel this job?"),
    gettext_lazy("It ends without having run. Where it is a job and no callback, its batch cannot succeed any more."),
    is_possible=_can_cancel_job, count=lambda target: 1, run=_cancel_job, say=_said_cancelled, is_dangerous=True,
)  # fmt: skip
PAUSE = Act(
    "pause", "cancel", gettext_lazy("Pause"),
    gettext_lazy("Pause this batch?"),
    gettext_lazy("No further job starts until you resume it. Jobs that run finish."),
    is_possible=lambda target: _is_settled(target.batch) and not (target.batch.finished_at or target.batch.is_paused),
    count=lambda target: target.batch.pending - target.batch.in_flight,
    run=lambda target: int(target.batch.pause()),
    say=lambda count, skipped: str(PAUSED if count else NOT_PAUSED),
    below=PAUSE_BELOW,
)  # fmt: skip
RESUME = Act(
    "resume", "cancel", gettext_lazy("Resume"),
    gettext_lazy("Resume this batch?"),
    gettext_lazy("Its jobs go on."),
    is_possible=lambda target: _is_settled(target.batch) and target.batch.is_paused and not target.batch.finished_at,
    count=lambda target: target.batch.pending,
    run=lambda target: int(target.batch.resume()),
    say=lambda count, skipped: str(RESUMED if count else NOT_RESUMED),
)  # fmt: skip
SEAL = Act(
    "seal", "cancel", gettext_lazy("Seal"),
    gettext_lazy("Seal this batch?"),
    gettext_lazy(
        "Nobody adds jobs from outside any more, and it ends with the jobs it has. Do this if its creator died."
    ),
    is_possible=lambda target: not (target.batch.sealed_at or target.batch.cancelled_at or target.batch.finished_at),
    count=lambda target: target.batch.total,
    run=lambda target: int(target.batch.seal()),
    say=lambda count, skipped: str(SEALED if count else NOT_SEALED),
)  # fmt: skip
DELETE = Act(
    "delete", "delete", gettext_lazy("Delete"),
    gettext_lazy("Delete this batch with all its jobs?"),
    gettext_lazy("Its jobs, results and failures are gone for good. Large batches go in chunks."),
    is_possible=_can_delete, count=lambda target: target.batch.total, run=_delete,
    say=lambda count, skipped: str(DELETED if count else NOT_DELETED),
    is_dangerous=True, below=DELETE_BELOW,
)  # fmt: skip

WHOLE = (RETRY, RESUME, PAUSE, SEAL, CANCEL, DELETE)
ACTS = {act.name: act for act in (*WHOLE, RETRY_GROUP, RETRY_JOB, CANCEL_JOB)}
