"""A timer for what must be done again and again. The supervisor uses it too."""

import time


class Every:
    """Is due every `seconds`, for the first time at once or after that time."""

    def __init__(self, seconds: float, *, at_once: bool = True) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + (0 if at_once else seconds)

    def is_due(self) -> bool:
        """Whether the time has come; if so, starts the next interval."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._seconds
        return True

    def soon(self, seconds: float = 0.0) -> None:
        self._next = min(self._next, time.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds until it is due."""
        return max(0.0, self._next - time.monotonic())
