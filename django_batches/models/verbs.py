"""The verbs of `Batch` and `BatchJob`, a few lines each: what they do is in `block`, `adding` and `transitions`."""

import asyncio
import time
from collections.abc import AsyncIterable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from asgiref.sync import sync_to_async

from .. import database
from ..calls.arguments import check_metadata
from ..calls.functions import Func
from ..calls.options import Backoff, ErrorTypes, Options, Seconds, count, seconds, text, whole_seconds
from ..exceptions import BatchError
from ..transitions import cancelling, creating, retrying
from .adding import Adder
from .block import Block
from .context import Current, running
from .twins import twin

if TYPE_CHECKING:
    from .batch import Batch
    from .job import BatchJob

P = ParamSpec("P")
T = TypeVar("T")

_USERS = ("description", "metadata")
_LONGEST_PAUSE = 0.5


class BatchVerbs:
    """What a batch can do."""

    block: Block | None = None
    """The open block that this object was made by."""

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
        """A new batch, to be filled in a `with` block; leaving the block seals it.

        `timeout` (seconds or timedelta; default: the setting DEFAULT_TIMEOUT) is what one run of a job may take.
        `max_attempts` counts the runs of a job, and `backoff` is the pause before the next one: seconds, a timedelta,
        a list with one per attempt, or `exponential(...)`. After an exception of the types `no_retry` there is no
        further attempt. Callbacks run with the same options unless registered through `using`.

        `concurrency` jobs of it run at a time at most. `max_failures=n`: when the n+1st job has failed for good, the
        others are cancelled and the batch has failed; `retry_failed()` revives them all. `deadline` (seconds or
        timedelta): a batch that has not ended so long after its creation is marked as overdue, and its `on_failure`
        callbacks are told. `key`: while a batch with it has not ended, opening another one raises `BatchExists`.

        In a running job or callback the batch is its child: the job ends with it, and the queue is that of the job's
        batch. `parent=None` opens a batch of its own.

        Inside `transaction.atomic()` nothing runs before the commit, and a rollback leaves nothing. The same holds for
        a savepoint around the whole block; one inside the block undoes only what had been written by then (every
        1,000 jobs), so roll back outside. Raises `TypeError` or `ValueError` for a wrong option. Leaving the block
        raises `BatchCancelled` where the batch was cancelled meanwhile, and jobs or callbacks were still to be written.
        """
        if parent is not None and parent is not Current.JOB:
            raise TypeError(f"parent: {parent!r} must be left out (the running job) or None (no parent).")
        options = Options.of(queue, timeout, max_attempts, backoff, no_retry)
        run = running.get() if parent else None
        batch = cast("type[Batch]", cls)(
            description=text(description, "description"),
            metadata=check_metadata({} if metadata is None else metadata),
            concurrency=count(concurrency, "concurrency", 1),
            max_failures=count(max_failures, "max_failures", 0),
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
        """The options that its jobs and callbacks have by default."""
        batch = cast("Batch", self)
        return Options(batch.queue, batch.timeout, batch.max_attempts, batch.backoff, batch.no_retry)

    def using(
        self,
        *,
        queue: str | None = None,
        timeout: Seconds | None = None,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        no_retry: ErrorTypes | None = None,
        run_after: Seconds | datetime | None = None,
    ) -> Adder:
        """The verbs that add jobs and callbacks, with other options; see `Adder.using`."""
        return self._adder.using(
            queue=queue,
            timeout=timeout,
            max_attempts=max_attempts,
            backoff=backoff,
            no_retry=no_retry,
            run_after=run_after,
        )

    def enqueue(self, func: "Func[P]", /, *args: P.args, **kwargs: P.kwargs) -> "BatchJob":
        """Adds one job; see `Adder.enqueue`."""
        return self._adder.enqueue(func, *args, **kwargs)  # type: ignore[arg-type]

    def map(
        self,
        func: "Func[Concatenate[T, P]]",
        iterable: Iterable[T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> int:
        """Adds `func(item, *args, **kwargs)` for each item; returns how many."""
        return self._adder.map(func, iterable, *args, **kwargs)  # type: ignore[arg-type]

    def starmap(self, func: "Func[...]", iterable: Iterable[Iterable[Any]], /, *args: Any, **kwargs: Any) -> int:
        """Adds `func(*item, *args, **kwargs)` for each item; returns how many."""
        return self._adder.starmap(func, iterable, *args, **kwargs)

    async def aenqueue(self, func: "Func[P]", /, *args: P.args, **kwargs: P.kwargs) -> "BatchJob":
        """Asynchronous twin of `enqueue`."""
        return await self._adder.aenqueue(func, *args, **kwargs)  # type: ignore[arg-type]

    async def amap(
        self,
        func: "Func[Concatenate[T, P]]",
        iterable: Iterable[T] | AsyncIterable[T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> int:
        """Asynchronous twin of `map`; takes asynchronous iterables too."""
        return await self._adder.amap(func, iterable, *args, **kwargs)  # type: ignore[arg-type]

    async def astarmap(
        self,
        func: "Func[...]",
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        """Asynchronous twin of `starmap`; takes asynchronous iterables too."""
        return await self._adder.astarmap(func, iterable, *args, **kwargs)

    def on_success(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job once every job has succeeded."""
        self._adder.on_success(func, *args, **kwargs)  # type: ignore[arg-type]

    def on_failure(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job when the first job has failed for good, while others go on."""
        self._adder.on_failure(func, *args, **kwargs)  # type: ignore[arg-type]

    def on_finish(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job once the batch has ended, whatever way."""
        self._adder.on_finish(func, *args, **kwargs)  # type: ignore[arg-type]

    def on_attempted(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job once every job has been tried at least once."""
        self._adder.on_attempted(func, *args, **kwargs)  # type: ignore[arg-type]

    def seal(self) -> bool:
        """Nobody adds from outside any more, so that it may end. False where it was sealed or has ended."""
        if self.block and self.block.is_active:
            return self.block.seal()
        return self._acted(creating.seal(self._key))

    def cancel(self, reason: str = "") -> int:
        """Cancels the batch; returns how many jobs that ended. Running jobs finish and count as what they become."""
        return self._acted(cancelling.cancel(self._key, text(reason, "reason")))

    def pause(self) -> bool:
        """Starts no further job; running ones finish. False where it is paused or has ended."""
        return self._acted(cancelling.pause(self._key))

    def resume(self) -> bool:
        """Goes on after `pause()`. False where it is not paused."""
        return self._acted(cancelling.resume(self._key))

    def retry_failed(self, include_cancelled: bool = False) -> int:
        """Runs its failed jobs again (and the cancelled ones), and failed callbacks; returns how many.

        A batch that had ended is re-opened for another round, in which its callbacks are told again. Raises
        `BatchCancelled` while a cancel is under way here or where a batch above was cancelled, `BatchExists` where
        another batch has its key by now, and `BatchError` where nobody waits for it any more.
        """
        return self._acted(retrying.retry_failed(self._key, include_cancelled))

    def wait(self, timeout: Seconds | None = None) -> bool:
        """Waits until the batch and its callbacks have ended; False after `timeout` (seconds or timedelta).

        True also where it has been deleted: only what has ended can be.

        Raises `BatchError` where that could never happen: inside a job (it holds the worker that would be needed), in
        `transaction.atomic()` (nothing starts before the commit), in the open block.
        """
        self._check_wait()
        for pause in _pauses(timeout):
            if self._is_through():
                return True
            time.sleep(pause)
        return self._is_through()

    async def await_(self, timeout: Seconds | None = None) -> bool:
        """Asynchronous twin of `wait` (`await` is a keyword)."""
        await sync_to_async(self._check_wait)()
        for pause in _pauses(timeout):
            if await sync_to_async(self._is_through)():
                return True
            await asyncio.sleep(pause)
        return await sync_to_async(self._is_through)()

    def _is_through(self) -> bool:
        if database.batches().filter(pk=self._key).exclude(finished_at__isnull=False, open_callbacks=0).exists():
            return False
        with suppress(BatchError):  # deleted meanwhile, as only what has ended can be
            self.reload()
        return True

    def reload(self) -> None:
        """Reads everything but the user's own fields again. Raises `BatchError` where it has been deleted."""
        batch = cast("Batch", self)
        fields = [field.attname for field in batch._meta.concrete_fields if field.attname not in _USERS]
        fresh = database.batches().filter(pk=self._key).values(*fields).first()
        if fresh is None:
            raise BatchError(f"Batch {self._key} has been deleted.")
        for name, value in fresh.items():
            setattr(batch, name, value)

    aseal, acancel, apause, aresume = twin(seal), twin(cancel), twin(pause), twin(resume)
    aretry_failed, areload = twin(retry_failed), twin(reload)

    @property
    def _adder(self) -> Adder:
        return Adder(cast("Batch", self), self.job_options)

    @property
    def _key(self) -> Any:
        return cast("Batch", self).pk

    def _acted(self, result: T) -> T:
        self.reload()
        return result

    def _check_wait(self) -> None:
        if running.get():
            raise BatchError("wait() inside a job would hold the worker it waits for: use a callback.")
        if self.block and self.block.is_active:
            raise BatchError("wait() inside the open block would never end: leave the block first.")
        if database.connection().in_atomic_block:
            raise BatchError(
                "wait() inside transaction.atomic() would never end: nothing starts before the commit. Call it after "
                "the block; in a TestCase run the jobs by django_batches.testing.drain()."
            )


def _pauses(timeout: Seconds | None) -> Iterator[float]:
    """How long to wait between two looks, in seconds: longer and longer, until `timeout`."""
    limit = None if timeout is None else time.monotonic() + seconds(timeout, "timeout")
    pause = 0.01
    while limit is None or time.monotonic() < limit:
        yield pause if limit is None else max(0.0, min(pause, limit - time.monotonic()))
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _alter_data(owner: type, *names: str) -> None:
    # A template calls what is callable: {{ batch.cancel }} would cancel the batch.
    for name in names:
        getattr(owner, name).alters_data = True


_REGISTERING = ("on_success", "on_failure", "on_finish", "on_attempted")
_ADDING = ("enqueue", "map", "starmap", "aenqueue", "amap", "astarmap", "using", *_REGISTERING)
_ACTING = ("seal", "cancel", "pause", "resume", "retry_failed", "reload")
_alter_data(Adder, *_ADDING)
_alter_data(BatchVerbs, *_ADDING, *_ACTING, *(f"a{name}" for name in _ACTING), "wait", "await_")
BatchVerbs.open.__func__.alters_data = True  # type: ignore[attr-defined]
