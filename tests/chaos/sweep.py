"""The sweep over all crash points: arms each point in each mode, while the load continues.

With a pattern, it repeats the matching points, because a failure does not always do damage.
"""

import json
import os
import random
import re
import signal
import time
from dataclasses import dataclass
from itertools import count

from tests.processes import wait_until

from .evidence import HITTING
from .faults import Fault
from .points import HANG, MODES
from .stage import Stage, children_of

PATIENCE = 8.0
"""Seconds within which a process must reach an armed point."""
LEARNING = 6.0
"""Seconds to discover the points."""

DATABASE = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "SET", "SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT")


@dataclass
class Armed:
    """A point that no process has reached yet."""

    point: str
    mode: str
    mark: str
    since: float

    @property
    def role(self) -> str:
        return self.point.partition(":")[0]


class Sweep:
    """Keeps one point of each role armed; replaces the injector of random faults."""

    def __init__(self, stage: Stage, limit: int, only: re.Pattern[str]) -> None:
        self.stage, self.limit, self.only = stage, limit, only
        self.random = random.Random(stage.seed)
        self.injected: list[Fault] = []
        self._missed: list[Armed] = []
        self._armed: list[Armed] = []
        self._done: set[tuple[str, str]] = set()
        self._numbers = count()

    def run(self, seconds: float) -> None:
        wait_until((self.stage.folder / "points").exists, 60)
        time.sleep(LEARNING)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and len(self.injected) < self.limit:
            self._arm()
            time.sleep(0.05)
            self._check()
            self._restart()
            if not self._armed and not self._todo():
                if not self.only.pattern:
                    break
                self._done.clear()
        self._missed, self._armed = self._missed + self._armed, []
        self._write()
        time.sleep(1.0)  # for processes that have read the file before
        self._check()
        self._restart()
        # A process that hangs would continue after the others have exited, and its outcomes would remain in the stream.
        time.sleep(max(0.0, max((fault.ended for fault in self.injected), default=0.0) - time.time()))
        self._restart()
        missed = [f"{each.point} ({each.mode})" for each in self._missed]
        print(f"{len(self.injected)} fired, {len(self._todo())} left, not reached: {missed}")

    def _arm(self) -> None:
        roles = {each.role for each in self._armed}
        free = [(point, mode) for point, mode in self._todo() if point.partition(":")[0] not in roles]
        if free:
            point, mode = self.random.choice(free)
            self._done.add((point, mode))
            self._armed.append(Armed(point, mode, f"fired-{next(self._numbers)}", time.time()))
            self._write()

    def _write(self) -> None:
        armed = {each.point: (each.mode, each.mark) for each in self._armed}
        # Rename it, so that no process reads a part of it.
        (self.stage.folder / "arming").write_text(json.dumps(armed))
        # The time stamps of the file system may be too coarse to show two writes.
        os.utime(self.stage.folder / "arming", ns=(time.time_ns(), time.time_ns()))
        os.replace(self.stage.folder / "arming", self.stage.folder / "armed")

    def _check(self) -> None:
        """Records the points that were reached, and gives up those that were not in time."""
        fired = [each for each in self._armed + self._missed if self._has_fired(each)]
        given_up = [each for each in self._armed if each not in fired and time.time() > each.since + PATIENCE]
        # Check these again: a process may have read the file just before.
        self._missed = [each for each in self._missed + given_up if each not in fired]
        if fired or given_up:
            self._armed = [each for each in self._armed if each not in fired + given_up]
            self._write()

    def _has_fired(self, armed: Armed) -> bool:
        """Whether a process has reached it, which is then recorded as a fault."""
        mark = self.stage.folder / armed.mark
        if not mark.exists() or not (pid := mark.read_text()):
            return False
        lasts = HANG if armed.mode == "hung before" else 0.0
        # The executors of a killed supervisor die, and the leases of a hanging supervisor expire.
        pids = [int(pid), *children_of(self.stage.folder, int(pid))] if armed.mode in HITTING else [int(pid)]
        self.injected.append(Fault(armed.mode, mark.stat().st_mtime, time.time() + lasts, armed.point, pids))
        return True

    def _todo(self) -> list[tuple[str, str]]:
        points = dict.fromkeys((self.stage.folder / "points").read_text().splitlines())
        return [
            (point, mode)
            for point in points
            for mode in MODES
            if (point, mode) not in self._done
            and not (mode == "done twice" and is_of_database(point))
            and self.only.search(f"{point} {mode}")
        ]

    def _restart(self) -> None:
        """Restarts supervisors and the load; they may have been killed at a point, but must not exit otherwise."""
        for host in self.stage.hosts:
            if (code := host.process.poll()) is not None:
                self._check_exit(f"host{host.number}", code)
                host.start()
        if (code := self.stage.loads[-1].poll()) is not None:
            self._check_exit("the load", code)
            self.stage.start_load()

    def _check_exit(self, who: str, code: int) -> None:
        if code != -signal.SIGKILL:
            self.stage.violations.append(f"{time.time():.3f} {who} exited unexpectedly with {code}")


def is_of_database(point: str) -> bool:
    """A statement is never sent twice: the driver does not repeat it."""
    return point.split(": ")[1].split()[0] in DATABASE
