"""What the public API raises besides `TypeError` and `ValueError` for bad arguments."""

import uuid

__all__ = ["BatchCancelled", "BatchError", "BatchExists", "BatchFinished", "FunctionNotAllowed"]


class BatchError(Exception):
    """Base of all errors of django_batches."""


class BatchExists(BatchError):
    """A batch with the same key has not ended yet."""


class BatchFinished(BatchError):
    """The batch has ended (or is being cancelled); nothing can be added to it."""


class BatchCancelled(BatchFinished):
    """The batch was cancelled; nothing can be added to it. Raised by a job it says that its work was cancelled."""

    def __init__(self, *args: object, batch_id: uuid.UUID | None = None) -> None:
        super().__init__(*args)
        self.batch_id = batch_id
        """The batch that refused something; None where a job has raised this by itself."""


class FunctionNotAllowed(BatchError):
    """The function cannot be a job: not importable by its path, or not in an installed app."""
