"""The methods of `Batch`. They validate and delegate to `adding`, `block` and `transitions`."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeVar, cast

from asgiref.sync import sync_to_async

from .. import database
from ..calls.arguments import check_metadata
from ..calls.options import Backoff, ErrorTypes, Options, Seconds, seconds, text, whole_number, whole_seconds
from ..exceptions import BatchError
from ..transitions import cancelling, creating, retrying
from .adding import Adder, AddingVerbs
from .block import Block
from .context import Current, running
from .decorators import alters_data, twin

T = TypeVar("T")


@alters_data
class BatchVerbs(AddingVerbs):
    """The methods with which a batch is created, filled and controlled."""

    block: Block | None = None
    """The block that created this object; None if it was loaded from the database."""

    @classmethod
    def open(
        cls,
        description: str = "",
        *,
        queue: str | None = None,
        timeout: Seconds | None = None,
        max_attempts: int = 1,
        backoff: Backoff = 0,
        no_retry: ErrorTypes = (),
        concurrency: int | None = None,
        max_failures: int | None = None,
        deadline: Seconds | None = None,
        key: str | None = None,
        metadata: dict[str, Any] | None = None,
        parent: Current | None = Current.JOB,
    ) -> Block:
        """Opens a new batch. Fill it in a `with` block; leaving the block seals it.

        `timeout` (seconds or timedelta; default: the setting DEFAULT_TIMEOUT) limits each run of a job. `max_attempts`
        is how many attempts a job may have. `backoff` is the delay before the next attempt: seconds, a timedelta, a
        list with one delay for each attempt, or `exponential(...)`. An exception of a type in `no_retry` fails the job
        without a further attempt. Callbacks run with the same options, unless you register them through `using`.

        At most `concurrency` jobs of the batch run at a time. If more than `max_failures` jobs fail for good, the other
        jobs are cancelled and the batch fails; `retry_failed()` then runs all of them again. If the batch has not ended
        within `deadline` (seconds or timedelta) after its creation, it is marked as overdue, and its `on_failure`
        callbacks are called. Until a batch with a `key` has ended, opening another one raises `BatchExists`.

        A batch that you open in a running job or callback is its child: the job ends only when the child has ended. The
        default queue of a child is that of the job's batch. `parent=None` opens an independent batch.

        Inside `transaction.atomic()` no job runs before the commit, and a rollback removes the batch. So does the
        rollback of a savepoint around the whole block. Do not roll back a savepoint inside the block: it removes only
        the jobs that were written in it, and they are written 1,000 at a time. Raises `TypeError` or `ValueError` for a
        wrong option. Leaving the block raises `BatchCancelled` if the batch was cancelled before all was written.
        """
        if parent is not None and parent is not Current.JOB:
            raise TypeError(f"parent: {parent!r} is not supported: pass None, or omit it to use the running job.")
        options = Options.of(
            queue=queue, timeout=timeout, max_attempts=max_attempts, backoff=backoff, no_retry=no_retry
        )
        run = running.get() if parent else None
        batch = cast("type[database.Batch]", cls)(
            description=text(description, "description"),
            metadata=check_metadata({} if metadata is None else metadata),
            concurrency=whole_number(concurrency, "concurrency", 1, or_none=True),
            max_failures=whole_number(max_failures, "max_failures", 0, or_none=True),
            key="" if key is None else text(key, "key", 200),
            parent_id=run.job_id if run else None,
            parent_dispatch=run.dispatch if run else None,
            **vars(options),
        )
        if deadline is not None:
            batch.deadline = whole_seconds(deadline, "deadline")
        return Block(batch, queue is None)

    @property
    def job_options(self) -> Options:
        """The default options of its jobs and callbacks."""
        batch = cast("database.Batch", self)
        return Options(batch.queue, batch.timeout, batch.max_attempts, batch.backoff, batch.no_retry)

    @property
    def _adder(self) -> Adder:
        return Adder(cast("database.Batch", self), self.job_options)

    @property
    def _open_block(self) -> Block | None:
        return self.block if self.block and self.block.is_active else None

    def seal(self) -> bool:
        """Seals the batch, so that it ends when all its jobs have ended. False if it was sealed or has ended."""
        return self._open_block.seal() if self._open_block else self._reloaded(creating.seal(self._key))

    def cancel(self, reason: str = "") -> int:
        """Cancels the batch, and returns how many jobs this cancelled. Running jobs finish and keep their outcome."""
        return self._reloaded(cancelling.cancel(self._key, text(reason, "reason")))

    def pause(self) -> bool:
        """Keeps further jobs from starting; running jobs finish. False if the batch is paused or has ended."""
        return self._reloaded(cancelling.pause(self._key))

    def resume(self) -> bool:
        """Lets jobs start again after `pause()`. False if the batch is not paused."""
        return self._reloaded(cancelling.resume(self._key))

    def retry_failed(self, include_cancelled: bool = False) -> int:
        """Runs the failed jobs and callbacks again, and optionally the cancelled jobs. Returns how many.

        If the batch has ended, another round begins, in which its callbacks are called again. Raises `BatchCancelled`
        while the batch is being cancelled or if a batch above it in the tree was cancelled, `BatchExists` if another
        batch now uses its key, and `BatchError` if it is a child batch for which its parent no longer waits.
        """
        return self._reloaded(retrying.retry_failed(self._key, include_cancelled))

    def wait(self, timeout: Seconds | None = None) -> bool:
        """Waits until the batch and its callbacks have ended. False if they have not within `timeout` seconds.

        `timeout` may be a timedelta. A batch that was deleted counts as ended, because only ended batches can be
        deleted. Raises `BatchError` where it could wait for ever: inside a job, whose worker the batch may need; in
        `transaction.atomic()`, because no job starts before the commit; and in the open block.
        """
        self._check_wait()
        for pause in _pauses(timeout):
            if self._is_complete():
                return True
            time.sleep(pause)
        return self._is_complete()

    async def await_(self, timeout: Seconds | None = None) -> bool:
        """Asynchronous twin of `wait`. The name ends with an underscore because `await` is a keyword."""
        await sync_to_async(self._check_wait)()
        for pause in _pauses(timeout):
            if await sync_to_async(self._is_complete)():
                return True
            await asyncio.sleep(pause)
        return await sync_to_async(self._is_complete)()

    def reload(self) -> None:
        """Reloads all fields except `description` and `metadata`. Raises `BatchError` if the batch was deleted."""
        batch = cast("database.Batch", self)
        fields = [field.attname for field in batch._meta.concrete_fields if field.attname not in database.USER_FIELDS]
        fresh = database.batches().filter(pk=self._key).values(*fields).first()
        if fresh is None:
            raise BatchError(f"Batch {self._key} has been deleted.")
        for name, value in fresh.items():
            setattr(batch, name, value)

    aseal, acancel, apause, aresume = twin(seal), twin(cancel), twin(pause), twin(resume)
    aretry_failed, areload = twin(retry_failed), twin(reload)

    @property
    def _key(self) -> Any:
        return cast("database.Batch", self).pk

    def _reloaded(self, result: T) -> T:
        self.reload()
        return result

    def _is_complete(self) -> bool:
        if database.batches().filter(pk=self._key).exclude(finished_at__isnull=False, open_callbacks=0).exists():
            return False
        with suppress(BatchError):  # the batch was deleted
            self.reload()
        return True

    def _check_wait(self) -> None:
        if running.get():
            raise BatchError("wait() inside a job occupies a worker that the batch may need: use a callback.")
        if self._open_block:
            raise BatchError("wait() inside the open block would never return: call it after the block.")
        if database.connection().in_atomic_block:
            raise BatchError(
                "wait() inside transaction.atomic() would never return: no job starts before the commit. Call it "
                "after the commit; in a TestCase, run the jobs with django_batches.testing.drain()."
            )


def _pauses(timeout: Seconds | None) -> Iterator[float]:
    """Yields growing pauses in seconds, up to half a second each, until `timeout` is over."""
    limit = None if timeout is None else time.monotonic() + seconds(timeout, "timeout")
    pause = 0.01
    while limit is None or time.monotonic() < limit:
        yield pause if limit is None else max(0.0, min(pause, limit - time.monotonic()))
        pause = min(pause * 1.5, 0.5)
