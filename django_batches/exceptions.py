"""What the public API raises besides `TypeError` and `ValueError` for bad arguments."""


class BatchError(Exception):
    """Base of all errors of django_batches."""


class BatchExists(BatchError):
    """A batch with the same key has not ended yet."""


class BatchFinished(BatchError):
    """The batch has ended (or is being cancelled); nothing can be added to it."""


class BatchCancelled(BatchFinished):
    """The batch was cancelled; nothing can be added to it."""


class FunctionNotAllowed(BatchError):
    """The function cannot be a job: not importable by its path, or not in an installed app."""
