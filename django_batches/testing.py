"""Runs batches in the tests of a project, without Redis and without a worker."""

from collections.abc import Callable
from datetime import datetime

from django.utils import timezone

from . import database
from .execution.runner import perform
from .states import JobStatus
from .transitions import applying, cancelling, children, claiming, frontier, retrying
from .transitions.claiming import Claimed
from .transport.client import Keys
from .transport.message import Message, dumps
from .transport.outcomes import Kind
from .transport.vanished import VanishReason

__all__ = ["drain"]


def drain(*, raise_failures: bool = True, limit: int = 10_000) -> int:
    """Runs all due jobs and callbacks in this process, and those that they add. Returns the number of runs.

    It uses the same rows, transitions and JSON as a worker, and works inside the transaction of a `TestCase`. Further
    attempts run at once, without their backoff. Jobs with a later `run_after` do not run. If a job fails for good, its
    exception is raised here after the failure was recorded, unless `raise_failures` is False. Raises `RuntimeError` if
    more than `limit` runs are due.
    """
    runs = 0
    while claimed := _claim():
        try:
            while claimed:
                runs += 1
                if runs > limit:
                    raise RuntimeError(f"drain() ran {limit} jobs, and more are due: do the jobs add jobs for ever?")
                _run(claimed.pop(0), raise_failures)
        finally:
            # After an exception, return the jobs that did not run, so that the next drain() can claim them.
            applying.record([_message(job).vanished(VanishReason.RETURNED) for job in claimed])
    return runs


def _claim() -> list[Claimed]:
    fence: Callable[[], datetime] = timezone.now
    _continue_operations()
    claiming.promote_due(fence)
    claiming.promote_retries()
    claimed = claiming.claim_callbacks(claiming.WINDOW, fence)
    for queue in frontier.queues():
        claimed += claiming.claim_jobs(queue, claiming.WINDOW, fence)
    return claimed


def _continue_operations() -> None:
    """Continues retries and cancels in the tree of batches and notifies parents, as the coordinator does."""
    while True:
        children.cancel_orphans()
        retrying.continue_retries()
        children.cancel_children()
        while cancelling.continue_cancels():
            pass
        if not children.notify_parents():
            return


def _run(job: Claimed, raise_failures: bool) -> None:
    message = _message(job)
    # An earlier job may have paused or cancelled the batch.
    if not job.event and job.batch_id in cancelling.batches_on_hold():
        applying.record([message.outcome(Kind.ON_HOLD)])
        return
    outcome, error = perform(message, "drain")
    applying.record([outcome])
    if error is not None and raise_failures and database.jobs().filter(pk=job.id, status=JobStatus.FAILED).exists():
        raise error


def _message(job: Claimed) -> Message:
    return Message.loads(Keys().rq_id(job.id, job.dispatch), dumps(job))
