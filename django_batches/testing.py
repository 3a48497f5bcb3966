"""For the tests of projects: runs batches in this process, without Redis and without a worker."""

from collections.abc import Callable
from datetime import datetime

from django.utils import timezone

from .connection import Keys
from .execution import perform
from .message import Message, dumps
from .outcomes import Kind
from .states import JobStatus
from .transitions import children, dispatching, due, recording, retrying, rows, steering
from .transitions.dispatching import Claimed

WORKER = "drain"


def drain(*, raise_failures: bool = True, limit: int = 10_000) -> int:
    """Runs all jobs and callbacks that are due, also those they add, and returns how many runs that were.

    The same rows, transitions and JSON round trip as with workers; works inside the transaction of a `TestCase`.
    Further attempts run at once, without their backoff; jobs that are scheduled for later for the first time do not.
    A job that fails for good raises its exception here, once it is recorded, unless `raise_failures` is False. Raises
    `RuntimeError` after `limit` runs: batches that open batches for ever.
    """
    runs = 0
    while claimed := _claim():
        try:
            while claimed:
                runs += 1
                if runs > limit:
                    raise RuntimeError(
                        f"drain() has run {limit} jobs, and there are more: do batches open batches for ever?"
                    )
                _run(claimed.pop(0), raise_failures)
        finally:
            recording.record([_message(job).outcome(Kind.VANISHED) for job in claimed])  # for the next drain()
    return runs


def _claim() -> list[Claimed]:
    fence: Callable[[], datetime] = timezone.now
    _look_after()
    dispatching.promote_due(fence)
    dispatching.promote_retries()
    claimed = dispatching.claim_callbacks(dispatching.WINDOW, fence)
    for queue in due.queues():
        claimed += dispatching.claim_jobs(queue, dispatching.WINDOW, fence)
    return claimed


def _look_after() -> None:
    """What the coordinator does besides: retries and cancels go on in the tree, and parents are told."""
    while True:
        children.cancel_orphans()
        retrying.carry_all_on()
        children.carry_cancels_down()
        while steering.carry_all_on():
            pass
        if not children.tell_parents():
            return


def _run(job: Claimed, raise_failures: bool) -> None:
    message = _message(job)
    # A job before this one may have paused or cancelled the batch.
    if not job.event and job.batch_id in steering.to_hold():
        recording.record([message.outcome(Kind.HELD)])
        return
    outcome, error = perform(message, WORKER)
    recording.record([outcome])
    if error is not None and raise_failures and _has_failed(job):
        raise error


def _message(job: Claimed) -> Message:
    return Message.loads(Keys().rq_id(job.id, job.dispatch), dumps(job))


def _has_failed(job: Claimed) -> bool:
    return rows.jobs().filter(pk=job.id, status=JobStatus.FAILED).exists()
