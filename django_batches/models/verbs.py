"""The verbs of `Batch`. The work is done in `adding`, `block` and `transitions`."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

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

if TYPE_CHECKING:
    from .batch import Batch

T = TypeVar("T")

_LONGEST_PAUSE = 0.5


@alters_data
class BatchVerbs(AddingVerbs):
    """The methods with which a batch is created, filled and controlled."""

    block: Block | None = None
    """The block that created this object."""

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
        is the number of runs a job may have, and `backoff` the delay before the next one: seconds, a timedelta, a list
        with one per attempt, or `exponential(...)`. An exception of the types `no_retry` ends the job without a further
        attempt. Callbacks run with the same options, unless you register them through `using`.

        At most `concurrency` of its jobs run at a time. `max_failures=n`: when job n+1 has failed for good, the other
        jobs are cancelled and the batch fails; `retry_failed()` revives them all. `deadline` (seconds or timedelta): a
        batch that has not ended this long after its creation is marked as overdue, and its `on_failure` callbacks are
        called. `key`: until the batch with this key has ended, opening another one raises `BatchExists`.

        A batch that is opened in a running job or callback is its child: the job ends with it, and uses the queue of
        the job's batch by default. `parent=None` opens an independent batch.

        Inside `transaction.atomic()` nothing runs before the commit, and a rollback leaves nothing. The same is true
        of a savepoint around the whole block. A savepoint inside the block undoes only what has been written by then
        (every 1,000 jobs), so roll back outside. Raises `TypeError` or `ValueError` for a wrong option. Leaving the
        block raises `BatchCancelled` if the batch has been cancelled and jobs or callbacks were still to be written.
        """
        if parent is not None and parent is not Current.JOB:
            raise TypeError(f"parent: {parent!r} is not supported: leave it out (the running job), or pass None.")
        options = Options.of(
            queue=queue, timeout=timeout, max_attempts=max_attempts, backoff=backoff, no_retry=no_retry
        )
        run = running.get() if parent else None
        batch = cast("type[Batch]", cls)(
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
        return Block(batch, inherits_queue=queue is None)

    @property
    def job_options(self) -> Options:
        """The default options of its jobs and callbacks."""
        batch = cast("Batch", self)
        return Options(batch.queue, batch.timeout, batch.max_attempts, batch.backoff, batch.no_retry)

    @property
    def _adder(self) -> Adder:
        return Adder(cast("Batch", self), self.job_options)

    @property
    def _open_block(self) -> Block | None:
        return self.block if self.block and self.block.is_active else None

    def seal(self) -> bool:
        """Closes the batch to new jobs from outside, so that it can end. False if it was sealed or has ended."""
        return self._open_block.seal() if self._open_block else self._reloaded(creating.seal(self._key))

    def cancel(self, reason: str = "") -> int:
        """Cancels the batch; returns how many jobs this cancelled. Running jobs finish, with their own outcome."""
        return self._reloaded(cancelling.cancel(self._key, text(reason, "reason")))

    def pause(self) -> bool:
        """Starts no further jobs; running ones finish. False if it is paused or has ended."""
        return self._reloaded(cancelling.pause(self._key))

    def resume(self) -> bool:
        """Starts jobs again after `pause()`. False if it is not paused."""
        return self._reloaded(cancelling.resume(self._key))

    def retry_failed(self, include_cancelled: bool = False) -> int:
        """Runs its failed jobs and callbacks again, and optionally its cancelled jobs; returns how many.

        A batch that has ended is re-opened for another round, in which its callbacks are called again. Raises
        `BatchCancelled` while it is being cancelled or if a batch above it was cancelled, `BatchExists` if another
        batch has taken its key, and `BatchError` if no parent waits for it any more.
        """
        return self._reloaded(retrying.retry_failed(self._key, include_cancelled))

    def wait(self, timeout: Seconds | None = None) -> bool:
        """Waits until the batch and its callbacks have ended; False after `timeout` (seconds or timedelta).

        Also True if the batch has been deleted, because only ended batches can be.

        Raises `BatchError` if it would wait for ever: inside a job (which occupies a worker), in
        `transaction.atomic()` (nothing starts before the commit), and in the open block.
        """
        self._check_wait()
        for pause in _pauses(timeout):
            if self._is_complete():
                return True
            time.sleep(pause)
        return self._is_complete()

    async def await_(self, timeout: Seconds | None = None) -> bool:
        """Asynchronous twin of `wait` (`await` is a keyword)."""
        await sync_to_async(self._check_wait)()
        for pause in _pauses(timeout):
            if await sync_to_async(self._is_complete)():
                return True
            await asyncio.sleep(pause)
        return await sync_to_async(self._is_complete)()

    def reload(self) -> None:
        """Reads all fields again except `description` and `metadata`. Raises `BatchError` if it has been deleted."""
        batch = cast("Batch", self)
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
        return cast("Batch", self).pk

    def _reloaded(self, result: T) -> T:
        self.reload()
        return result

    def _is_complete(self) -> bool:
        if database.batches().filter(pk=self._key).exclude(finished_at__isnull=False, open_callbacks=0).exists():
            return False
        with suppress(BatchError):  # it has been deleted
            self.reload()
        return True

    def _check_wait(self) -> None:
        if running.get():
            raise BatchError("wait() inside a job occupies a worker that the batch may need: use a callback.")
        if self._open_block:
            raise BatchError("wait() inside the open block would never return: leave the block first.")
        if database.connection().in_atomic_block:
            raise BatchError(
                "wait() inside transaction.atomic() would never return: nothing starts before the commit. Call it "
                "after the block; in a TestCase run the jobs with django_batches.testing.drain()."
            )


def _pauses(timeout: Seconds | None) -> Iterator[float]:
    """Growing pauses between two queries, in seconds, until `timeout`."""
    limit = None if timeout is None else time.monotonic() + seconds(timeout, "timeout")
    pause = 0.01
    while limit is None or time.monotonic() < limit:
        yield pause if limit is None else max(0.0, min(pause, limit - time.monotonic()))
        pause = min(pause * 1.5, _LONGEST_PAUSE)
