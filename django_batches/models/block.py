"""The block in which a batch is filled."""

import json
import logging
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import Error
from django.utils import timezone

from .. import database
from ..calls.arguments import dump_arguments
from ..calls.functions import Func, bound_names, path_of
from ..calls.options import Options, RunAfter
from ..conf import settings
from ..database.inserting import NewJob
from ..exceptions import BatchError
from ..states import Event
from ..transitions import cancelling, creating
from .context import open_block, running

if TYPE_CHECKING:
    from .batch import Batch
    from .job import BatchJob

logger = logging.getLogger("django_batches")

FLUSH_AT = 1_000
"""How many jobs are buffered and then written in one transaction: constant memory for any number."""


class Block:
    """The block in which a batch is filled: `with Batch.open(...) as batch:`. Leaving it seals the batch."""

    def __init__(self, batch: "Batch", *, inherits_queue: bool = False) -> None:
        self.batch = batch
        self._inherits_queue = inherits_queue
        self.is_active = False
        self._callbacks: list[dict[str, Any]] = []
        self._buffer: list[NewJob] = []
        self._returned: dict[Any, BatchJob] = {}
        self._outer: Block | None = None

    @staticmethod
    def innermost() -> "Block | None":
        """The innermost open block of this context (thread or asynchronous task), or None."""
        block = open_block.get()
        while block and not block.is_active:  # left in another context, or before a block inside it
            block = block._outer
        return block

    def __enter__(self) -> "Batch":
        if self.is_active or not self.batch._state.adding:
            raise BatchError("This block was entered before: call Batch.open(...) again for another batch.")
        on_failure = settings().ON_FAILURE
        if on_failure:  # check it before anything is written: a batch left open would keep its key
            bound_names(path_of(on_failure), 1, (), {})
        creating.create(self.batch, inherits_queue=self._inherits_queue)
        run = running.get()
        if run and self.batch.parent_id == run.job_id:
            run.children.append(self.batch.pk)
        if on_failure:
            self.register(Event.FAILURE, on_failure, (), {}, self.batch.job_options)
        self.batch.block = self
        self.is_active = True
        # Not with a token of the variable: an asynchronous block may be left in another context.
        self._outer = self.innermost()
        open_block.set(self)
        return self.batch

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._close()
            else:
                self._undo(error)
        finally:
            self.is_active = False
            open_block.set(self.innermost())

    async def __aenter__(self) -> "Batch":
        return await sync_to_async(self.__enter__)()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await sync_to_async(self.__exit__)(kind, error, traceback)

    def add(self, job: NewJob, returned: "BatchJob | None" = None) -> None:
        """Buffers a job. Writes a full buffer only before the next job, so that the last one goes with the seal."""
        if len(self._buffer) >= FLUSH_AT:
            self.flush()
        self._buffer.append(job)
        if returned is not None:
            self._returned[job.id] = returned

    def flush(self, *, seal: bool = False) -> None:
        """Writes the buffered jobs. Raises `BatchCancelled` if the batch has been cancelled."""
        jobs, returned = self._buffer, self._returned
        if not jobs:
            return
        fields = creating.add(self.batch.pk, jobs, self.callbacks, seal=seal)
        self._buffer, self._returned = [], {}
        self.batch.registered_callbacks = self.callbacks
        for name, value in fields.items():
            setattr(self.batch, name, value)
        for position, job in enumerate(jobs, start=fields["total"] - len(jobs)):
            if job.id in returned:
                mark_as_written(returned[job.id], position)

    def seal(self) -> bool:
        """Writes the buffered jobs and seals the batch. False if it was sealed or has ended."""
        if self.batch.sealed_at:
            self.flush()
            return False
        if self._buffer:
            self.flush(seal=True)
            self.batch.sealed_at = timezone.now()
            return True
        sealed = creating.seal(self.batch.pk, self.callbacks)
        self.batch.reload()
        return sealed

    def register(
        self,
        event: Event,
        func: "Func[...]",
        args: Any,
        kwargs: dict[str, Any],
        options: Options,
        after: RunAfter | None = None,
    ) -> None:
        """Registers a callback. Its row is created when the event happens, and it runs then or at `after`."""
        path = path_of(func)
        names = bound_names(path, 1, args, kwargs)
        self._callbacks.append(
            {
                "event": event.value,
                "func": path,
                "arguments": dump_arguments(args, kwargs, names),
                **vars(options),
                "run_after": after.total_seconds() if isinstance(after, timedelta) else after and after.isoformat(),
            }
        )

    @property
    def callbacks(self) -> str:
        return json.dumps(self._callbacks, separators=(",", ":"))

    def _close(self) -> None:
        try:
            self.seal()
        except BaseException as failure:
            self._undo(failure)
            raise

    def _undo(self, error: BaseException | None) -> None:
        """Drops the buffered jobs, and deletes the batch or, if some of its jobs were written, cancels it."""
        self._buffer.clear()
        if database.connection().needs_rollback:
            return  # the caller's transaction will roll back the batch
        try:
            if not creating.discard(self.batch.pk):
                cancelling.cancel(self.batch.pk, f"{type(error).__name__} was raised in its block.")
                self.batch.reload()
        except Error:
            # Raise the block's own error. The coordinator will cancel the batch after OPEN_TIMEOUT.
            logger.exception("Cannot cancel batch %s after an error in its block.", self.batch.pk)


def mark_as_written(job: "BatchJob", position: int) -> None:
    """Updates a job that a verb returned, once its row has been written."""
    job.position = position
    job._state.adding = False
    job._state.db = database.alias()
