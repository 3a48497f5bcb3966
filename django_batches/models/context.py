"""The running job and the open block of the current context (a thread or an asynchronous task)."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from .. import database
from .decorators import twin

if TYPE_CHECKING:
    from .batch import Batch
    from .block import Block
    from .job import BatchJob


@dataclass(frozen=True)
class Running:
    """One run of a job or callback."""

    job_id: UUID
    batch_id: UUID
    dispatch: int
    is_callback: bool = False
    children: list[UUID] = field(default_factory=list, compare=False)
    """The keys of the child batches that this run has opened."""


class Current(Enum):
    """The default of the option `parent` of `Batch.open`: the running job, if there is one."""

    JOB = "the running job"


running: ContextVar[Running | None] = ContextVar("django_batches_running", default=None)
open_block: ContextVar["Block | None"] = ContextVar("django_batches_opened", default=None)
"""The block that this context entered last, which may have been left since; see `Block.innermost`."""


def current_batch() -> "Batch | None":
    """Loads the batch of the running job or callback from the database; None if no job is running."""
    run = running.get()
    return database.batches().filter(pk=run.batch_id).first() if run else None


def current_job() -> "BatchJob | None":
    """Loads the running job or callback from the database; None if no job is running."""
    run = running.get()
    return database.jobs().filter(pk=run.job_id).first() if run else None


acurrent_batch, acurrent_job = twin(current_batch), twin(current_job)
