"""The block in which a batch is filled."""

import json
import logging
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db import Error
from django.utils import timezone

from .. import database
from ..calls.arguments import dump_arguments
from ..calls.functions import bound_names, path_of
from ..calls.options import Options, RunAfter
from ..conf import settings
from ..database.inserting import NewJob
from ..exceptions import BatchError
from ..states import Event
from ..transitions import cancelling, creating
from .context import open_block, running

logger = logging.getLogger("django_batches")

FLUSH_AT = 1_000
"""How many jobs are buffered and then written in one transaction, so that memory stays constant."""


class Block:
    """The block in which a batch is filled: `with Batch.open(...) as batch:`. Leaving it seals the batch."""

    def __init__(self, batch: "database.Batch", inherits_queue: bool) -> None:
        self.batch = batch
        self._inherits_queue = inherits_queue
        self.is_active = False
        self._callbacks: list[dict[str, Any]] = []
        self._buffer: list[tuple[NewJob, database.BatchJob | None]] = []
        """Each job to write, with the object that a verb returned for it."""
        self._outer: Block | None = None

    @staticmethod
    def innermost() -> "Block | None":
        """The innermost open block of this context (thread or asynchronous task), or None."""
        block = open_block.get()
        while block and not block.is_active:  # it was left in another context, or before a block inside it was
            block = block._outer
        return block

    def __enter__(self) -> "database.Batch":
        if self.is_active or not self.batch._state.adding:
            raise BatchError("This block was already entered: call Batch.open(...) again for another batch.")
        on_failure = settings().ON_FAILURE
        if on_failure:  # check it before the batch is written: an error would leave it open, and its key in use
            bound_names(path_of(on_failure), 1, (), {})
        creating.create(self.batch, inherits_queue=self._inherits_queue)
        run = running.get()
        if run and self.batch.parent_id == run.job_id:
            run.children.append(self.batch.pk)
        if on_failure:
            self.register(Event.FAILURE, on_failure, (), {}, self.batch.job_options)
        self.batch.block = self
        self.is_active = True
        # ContextVar.reset() would fail in __exit__: an asynchronous block may be left in another context.
        self._outer = self.innermost()
        open_block.set(self)
        return self.batch

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            if error is None:
                self._close()
            else:
                self._undo(error)
        finally:
            self.is_active = False
            open_block.set(self.innermost())

    async def __aenter__(self) -> "database.Batch":
        return await sync_to_async(self.__enter__)()

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        await sync_to_async(self.__exit__)(kind, error, traceback)

    def add(self, job: NewJob, returned: "database.BatchJob | None" = None) -> None:
        """Buffers a job. A full buffer is written only when the next job comes: the last one is written by the seal."""
        if len(self._buffer) >= FLUSH_AT:
            self.flush()
        self._buffer.append((job, returned))

    def flush(self, *, seal: bool = False) -> None:
        """Writes the buffered jobs. Raises `BatchCancelled` if the batch was cancelled."""
        written = self._buffer
        if not written:
            return
        fields = creating.add(self.batch.pk, [job for job, _ in written], self.callbacks, seal=seal)
        self._buffer = []
        self.batch.registered_callbacks = self.callbacks
        for name, value in fields.items():
            setattr(self.batch, name, value)
        for position, (_, returned) in enumerate(written, start=fields["total"] - len(written)):
            if returned is not None:
                mark_as_written(returned, position)

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
        func: Any,
        args: Any,
        kwargs: dict[str, Any],
        options: Options,
        after: RunAfter | None = None,
    ) -> None:
        """Registers a callback. The event adds its row; it runs then or, if `after` is given, not before that time."""
        path = path_of(func)
        arguments = dump_arguments(args, kwargs, bound_names(path, 1, args, kwargs))
        run_after = after.total_seconds() if isinstance(after, timedelta) else after and after.isoformat()
        callback = {"event": event.value, "func": path, "arguments": arguments, **vars(options), "run_after": run_after}
        self._callbacks.append(callback)

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
        """Discards the buffered jobs. Then deletes the batch or, if some of its jobs were written, cancels it."""
        self._buffer.clear()
        if database.connection().needs_rollback:
            return  # the rollback of the caller's transaction removes the batch
        try:
            if not creating.discard(self.batch.pk):
                cancelling.cancel(self.batch.pk, f"{type(error).__name__} was raised in its block.")
                self.batch.reload()
        except Error:
            # Log this error, so that the block's own error is raised. After OPEN_TIMEOUT the coordinator cancels it.
            logger.exception("Cannot cancel batch %s after an error in its block.", self.batch.pk)


def mark_as_written(job: "database.BatchJob", position: int) -> None:
    """Updates the object that a verb returned, once its row was written."""
    job.position = position
    job._state.adding = False
    job._state.db = database.alias()
