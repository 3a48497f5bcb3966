"""The exceptions of the public API. Bad arguments raise `TypeError` or `ValueError`."""

import uuid

__all__ = ["BatchCancelled", "BatchError", "BatchExists", "BatchFinished", "FunctionNotAllowed"]


class BatchError(Exception):
    """Base of all errors of django_batches."""


class BatchExists(BatchError):
    """A batch with the same key has not ended yet."""


class BatchFinished(BatchError):
    """The batch has ended or is being cancelled; nothing can be added to it."""


class BatchCancelled(BatchFinished):
    """The batch was cancelled; nothing can be added to it. A job may raise it to end as cancelled."""

    def __init__(self, *args: object, batch_id: uuid.UUID | None = None) -> None:
        super().__init__(*args)
        self.batch_id = batch_id
        """The key of the cancelled batch; None if a job raised this itself."""


class FunctionNotAllowed(BatchError):
    """The function may not run as a job: it cannot be imported by its path, or is not in an installed app."""
