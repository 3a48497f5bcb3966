"""Crash points: every operation of a process on Redis or the database, identified by its command and its caller.

They are installed by wrapping the clients, so that the code under test does not know of them. The file `armed` lists
the armed points and their modes. The first process that reaches an armed point fails there, and writes a mark.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import ledger

WANTED = "CHAOS_POINTS"
HANG = 12.0
"""Seconds; with the short times, another coordinator takes over and dispatches lost jobs within them."""
MODES = ("killed before", "killed after", "failed before", "failed after", "hung before", "done twice")
SKIPPED = ("database", "transport.client", "transport.scripts._FastScript")
"""Modules that run operations for others."""


class Points:
    """The points of this process."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._folder = Path(os.environ[ledger.FOLDER])
        self._seen: set[str] = set()
        self._stamp = 0
        self._armed: dict[str, tuple[str, str]] = {}

    def reach(self, what: str, run: Callable[[], Any], failed: Callable[[], Exception], twice: bool = False) -> Any:
        """Runs an operation; fails or repeats it if its point is armed."""
        point = f"{self.role}: {what} in {caller()}"
        if point not in self._seen:
            self._seen.add(point)
            with (self._folder / "points").open("a") as file:
                file.write(f"{point}\n")
        mode = self._mode_of(point)
        if mode == "killed before":
            os.kill(os.getpid(), signal.SIGKILL)
        elif mode == "failed before":
            raise failed()
        elif mode == "hung before":
            time.sleep(HANG)
        elif mode == "done twice" and twice:
            run()
        result = run()
        if mode == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        elif mode == "failed after":
            raise failed()
        return result

    def _mode_of(self, point: str) -> str:
        armed = self._folder / "armed"
        try:
            stamp = armed.stat().st_mtime_ns
            if stamp != self._stamp:
                self._armed, self._stamp = json.loads(armed.read_text()), stamp
        except (OSError, ValueError):
            return ""
        mode, mark = self._armed.get(point, ("", ""))
        try:
            file = os.open(self._folder / mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL) if mode else 0
        except FileExistsError:
            return ""  # another process was faster
        if mode:
            os.write(file, str(os.getpid()).encode())
            os.close(file)
        return mode


def caller() -> str:
    """The innermost function of the package on the stack, with its module."""
    frame = sys._getframe(2)
    while frame:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("django_batches"):
            place = f"{module.removeprefix('django_batches').lstrip('.')}.{frame.f_code.co_qualname}"
            if not place.startswith(SKIPPED):
                return place
        frame = frame.f_back  # type: ignore[assignment]
    return "a test"


def install(points: Points) -> None:
    wrap_redis(points)
    wrap_database(points)


def wrap_redis(points: Points) -> None:
    def failed() -> Exception:
        return RedisTimeout("an armed point")

    def wrap(owner: Any, name: str, what: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            return points.reach(what(self, *args), lambda: original(self, *args, **kwargs), failed, twice=True)

        setattr(owner, name, wrapped)

    wrap(Redis, "execute_command", lambda self, *args: str(args[0]))
    wrap(scripts._FastScript, "__call__", lambda self, *args: "EVALSHA")
    original = Pipeline.execute

    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        stack = list(self.command_stack)

        def run() -> Any:
            self.command_stack = list(stack)  # the first run has emptied it
            return original(self, *args, **kwargs)

        return points.reach("a pipeline", run, failed, twice=True) if stack else original(self, *args, **kwargs)

    Pipeline.execute = execute


def wrap_database(points: Points) -> None:
    def lost(wrapper: Any) -> Exception:
        if wrapper.connection is not None:
            wrapper.connection.close()
        return OperationalError("an armed point")

    execute, commit = CursorWrapper.execute, BaseDatabaseWrapper.commit

    def execute_at_point(self: Any, sql: Any, params: Any = None) -> Any:
        what = str(sql).split(maxsplit=1)[0]
        return points.reach(what, lambda: execute(self, sql, params), lambda: lost(self.db))

    def commit_at_point(self: Any) -> Any:
        return points.reach("COMMIT", lambda: commit(self), lambda: lost(self))

    CursorWrapper.execute = execute_at_point  # type: ignore[method-assign]
    BaseDatabaseWrapper.commit = commit_at_point  # type: ignore[method-assign]


if os.environ.get(WANTED):
    from django.db import OperationalError
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.utils import CursorWrapper
    from redis import Redis
    from redis.client import Pipeline
    from redis.exceptions import TimeoutError as RedisTimeout

    from django_batches.transport import scripts
