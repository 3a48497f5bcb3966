"""The sweep over all crash points: each in turn does what each mode says, while the load goes on."""

import json
import os
import random
import re
import time
from dataclasses import dataclass

from .faults import Fault
from .points import HANG, MODES
from .stage import Stage

PATIENCE = 8.0
"""Seconds in which the load has to come by a point."""
LEARNING = 6.0
"""Seconds in which the points are seen for the first time."""


@dataclass
class Armed:
    """A point that waits for somebody to come by."""

    point: str
    mode: str
    mark: str
    since: float

    @property
    def role(self) -> str:
        return self.point.partition(":")[0]


class Sweep:
    """Keeps one point of each role armed; takes the place of the injector of random faults."""

    def __init__(self, stage: Stage, limit: int, only: re.Pattern[str]) -> None:
        self.stage, self.limit, self.only = stage, limit, only
        self.random = random.Random(stage.seed)
        self.injected: list[Fault] = []
        self.missed: list[str] = []
        self._armed: list[Armed] = []
        self._done: set[tuple[str, str]] = set()

    def run(self, seconds: float) -> None:
        time.sleep(LEARNING)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and len(self.injected) < self.limit:
            self._arm()
            time.sleep(0.05)
            self._look()
            self._restart()
            if not self._armed and not self._todo():
                break
        self._armed = []
        self._write()
        time.sleep(1.0)  # whoever has read of them before
        self._restart()
        print(f"{len(self.injected)} fired, {len(self._todo())} left, never reached: {self.missed}")

    def _arm(self) -> None:
        roles = {each.role for each in self._armed}
        free = [(point, mode) for point, mode in self._todo() if point.partition(":")[0] not in roles]
        if free:
            point, mode = self.random.choice(free)
            self._done.add((point, mode))
            self._armed.append(Armed(point, mode, f"fired-{len(self._done)}", time.time()))
            self._write()

    def _write(self) -> None:
        armed = {each.point: (each.mode, each.mark) for each in self._armed}
        # Renamed, so that nobody reads half of it.
        (self.stage.folder / "arming").write_text(json.dumps(armed))
        os.replace(self.stage.folder / "arming", self.stage.folder / "armed")

    def _look(self) -> None:
        """Notes who came by, and gives up what nobody comes by."""
        for each in list(self._armed):
            mark = self.stage.folder / each.mark
            if mark.exists() and (pid := mark.read_text()):
                lasts = HANG if each.mode == "hung before" else 0.0
                self.injected.append(Fault(each.mode, each.since, time.time() + lasts, each.point, [int(pid)]))
            elif time.time() < each.since + PATIENCE:
                continue
            else:
                self.missed.append(f"{each.point} ({each.mode})")
            self._armed.remove(each)
            self._write()

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
        """A supervisor or a creator that came by was killed."""
        for host in self.stage.hosts:
            if host.process.poll() is not None:
                host.start()
        if self.stage.loads[-1].poll() is not None:
            self.stage.start_load()


def is_of_database(point: str) -> bool:
    """A statement can not come twice: the driver does not repeat anything."""
    return point.split(": ")[1].split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "COMMIT", "WITH", "SAVEPOINT")
