"""The exceptions of the public API. Wrong arguments raise `TypeError` or `ValueError` instead."""

import uuid

__all__ = ["BatchCancelled", "BatchError", "BatchExists", "BatchFinished", "FunctionNotAllowed"]


class BatchError(Exception):
    """The base class of all exceptions of django_batches."""


class BatchExists(BatchError):
    """A batch with the same key has not ended yet."""


class BatchFinished(BatchError):
    """No job or callback can be added, because the batch has ended or is being cancelled."""


class BatchCancelled(BatchFinished):
    """No job or callback can be added, because the batch was cancelled. A job may raise this to end as cancelled."""

    def __init__(self, *args: object, batch_id: uuid.UUID | None = None) -> None:
        super().__init__(*args)
        self.batch_id = batch_id
        """The key of the cancelled batch; None if a job raised the exception to end as cancelled."""


class FunctionNotAllowed(BatchError):
    """The function may not run as a job: its path cannot be imported, or is not in an installed app."""
