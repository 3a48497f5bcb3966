"""Why a job is `vanished`: it was dispatched but never started, so it runs again without using an attempt."""

from enum import StrEnum


class VanishReason(StrEnum):
    """The reason in an outcome of kind `VANISHED`. Its text is in the job's `error` and in the log."""

    text: str

    def __new__(cls, value: str, text: str) -> "VanishReason":
        member = str.__new__(cls, value)
        member._value_, member.text = value, text
        return member

    GONE = "gone", "Redis had no trace of it"
    """The reconciler: Redis was emptied or restored from an older dump, or someone deleted the job there."""
    TAKEN = "taken", "A worker took it from its queue and did not start it"
    """The reconciler: the worker died in between. A plain RQ worker takes and starts a job in two steps."""
    UNEXPECTED_STATUS = "unexpected_status", "It has an unexpected status in RQ, and its outcome never came"
    """The reconciler: someone changed its status in RQ, for example to `deferred`."""
    SUPERSEDED = "superseded", "Its row has ended or was dispatched again"
    """The worker, before the start: Redis was restored from an older dump, an earlier run has reported a success, or
    the process was frozen. Changes nothing, because the row does not expect this dispatch any more."""
    ROW_UNREADABLE = "row_unreadable", "Its row could not be read before its start"
    """The worker, before the start: the database was away."""
    BATCH_UNREADABLE = "batch_unreadable", "The batch of this callback could not be read"
    """The worker, before the start: the database was away."""
    PROCESS_ENDED = "process_ended", "The process of its executor ended before its start"
    """The supervisor, after the executor exited on its own between the take and the start."""
    OTHER_JOB_KILLED = "other_job_killed", "Its executor was killed because of another job"
    """The supervisor: it killed the executor for a job that had just ended, when this one was taken."""
    RETURNED = "returned", "drain() ended before its turn"
    """`testing.drain()`: an earlier job failed and raised its exception, or the limit was reached."""
    UNKNOWN = "unknown", "The reason is unknown"
    """Another version wrote the outcome."""

    @classmethod
    def loads(cls, value: object) -> "VanishReason":
        return next((reason for reason in cls if reason.value == value), cls.UNKNOWN)
