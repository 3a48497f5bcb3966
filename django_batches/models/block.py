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
"""Jobs that are buffered: one transaction per so many, and constant memory for any number."""


class Block:
    """The block in which a batch is filled: `with Batch.open(...) as batch:`. Leaving it seals the batch."""

    def __init__(self, batch: "Batch", *, inherits_queue: bool = False) -> None:
        self.batch = batch
        self._inherits_queue = inherits_queue
        self.is_active = False
        self._callbacks: list[dict[str, Any]] = []
        self._buffer: list[NewJob] = []
        self._returned: dict[Any, BatchJob] = {}
        self._around: Block | None = None

    @staticmethod
    def innermost() -> "Block | None":
        """The innermost open block of this context (thread or asynchronous task), None outside of all."""
        block = open_block.get()
        while block and not block.is_active:  # left in another context, or before one inside it
            block = block._around
        return block

    def __enter__(self) -> "Batch":
        if self.is_active or not self.batch._state.adding:
            raise BatchError("Batch.open(...) makes one batch: call it again for another one.")
        on_failure = settings().ON_FAILURE
        if on_failure:  # judged before anything is written: nobody would seal the batch, or free its key
            bound_names(path_of(on_failure), 1, (), {})
        creating.create(self.batch, inherits_queue=self._inherits_queue)
        run = running.get()
        if run and self.batch.parent_id == run.job_id:
            run.children.append(self.batch.pk)
        if on_failure:
            self.register(Event.FAILURE, on_failure, (), {}, self.batch.job_options)
        self.batch.block = self
        self.is_active = True
        # No token to put it back with: an asynchronous block is left in another context than it was entered in.
        self._around = self.innermost()
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
        """Buffers a job; a full buffer is written before the next one, so that the last goes with the seal."""
        if len(self._buffer) >= FLUSH_AT:
            self.flush()
        self._buffer.append(job)
        if returned is not None:
            self._returned[job.id] = returned

    def flush(self, *, seal: bool = False) -> None:
        """Writes what is buffered. Raises `BatchFinished` where the batch was cancelled meanwhile."""
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
        """Writes what is buffered and seals the batch; False where it was sealed or has ended."""
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
        """Registers a callback, whose row is made when the event happens; it runs `after` that, or at that moment."""
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
        """What was not written never is; the batch is cancelled if some of it was, gone if not."""
        self._buffer.clear()
        if database.connection().needs_rollback:
            return  # the caller's transaction is lost, and the batch with it
        try:
            if not creating.discard(self.batch.pk):
                cancelling.cancel(self.batch.pk, f"Its creator raised {type(error).__name__} while filling it.")
                self.batch.reload()
        except Error:
            # The error of the block goes on, not this one. The coordinator cancels the batch after OPEN_TIMEOUT.
            logger.exception("Batch %s could not be cancelled after an error in its block.", self.batch.pk)


def mark_as_written(job: "BatchJob", position: int) -> None:
    """Updates a job that a verb returned, once its row has been written."""
    job.position = position
    job._state.adding = False
    job._state.db = database.alias()
