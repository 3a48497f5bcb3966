"""The state of a worker's shutdown, and the signals that the supervisor waits for."""

import signal
import time

SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*SHUTDOWN_SIGNALS, signal.SIGCHLD, signal.SIGALRM)
"""The signals that the supervisor blocks and waits for."""


class Shutdown:
    """When a shutdown began, was requested and interrupted the jobs, by the monotonic clock; or None."""

    def __init__(self, grace: float | None) -> None:
        self._grace = grace
        self.began: float | None = None
        """Also without a request: when `--max-jobs` is reached or a burst is over."""
        self.requested: float | None = None
        self.interrupted: float | None = None
        """When it stopped waiting for the running jobs."""

    @property
    def has_begun(self) -> bool:
        return self.began is not None

    def begin(self) -> None:
        self.began = self.began or time.monotonic()

    def request(self) -> None:
        self.requested = time.monotonic()
        self.begin()

    def interrupt(self) -> None:
        self.interrupted = self.interrupted or time.monotonic()

    def is_grace_over(self) -> bool:
        if self._grace is None or self.requested is None:
            return False
        return time.monotonic() > self.requested + self._grace


def wait_for_signal(seconds: float) -> int:
    """Returns the next of the blocked signals; SIGALRM after so many seconds.

    Does not use `sigtimedwait`: if SIGSTOP and SIGCONT interrupt it and its time is over by then, it returns a signal
    that it reads from uninitialised memory.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    received = signal.sigwait(SIGNALS)
    # A pending SIGALRM would end the next wait at once, and hide a SIGTERM, which has a higher number.
    signal.setitimer(signal.ITIMER_REAL, 0)
    return received
