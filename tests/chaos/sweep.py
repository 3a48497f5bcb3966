"""The sweep over all crash points: each in turn does what each mode says, while the load goes on."""

import json
import os
import random
import re
import time

from .faults import Fault
from .points import HANG, MODES
from .stage import Stage

PATIENCE = 4.0
"""Seconds in which the load has to come by a point."""
LEARNING = 6.0
"""Seconds in which the points are seen for the first time."""


class Sweep:
    """Arms one point after the other; takes the place of the injector of random faults."""

    def __init__(self, stage: Stage, limit: int, only: re.Pattern[str]) -> None:
        self.stage, self.limit, self.only = stage, limit, only
        self.random = random.Random(stage.seed)
        self.injected: list[Fault] = []
        self.missed: list[str] = []
        self._done: set[tuple[str, str]] = set()

    def run(self, seconds: float) -> None:
        time.sleep(LEARNING)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and len(self.injected) < self.limit and (todo := self._todo()):
            self.fire(*self.random.choice(todo))
            self._restart()
        time.sleep(0.5)
        self._restart()
        print(f"{len(self.injected)} of {len(self.injected) + len(self._todo())} fired, never reached: {self.missed}")

    def fire(self, point: str, mode: str) -> None:
        """Arms a point and waits until somebody came by."""
        folder = self.stage.folder
        (folder / "fired").unlink(missing_ok=True)
        began = time.time()
        # Renamed, so that nobody reads half of it.
        (folder / "arming").write_text(json.dumps({"point": point, "mode": mode}))
        os.replace(folder / "arming", folder / "armed")
        self._done.add((point, mode))
        while not (folder / "fired").exists() or not (pid := (folder / "fired").read_text()):
            if time.time() > began + PATIENCE:
                (folder / "armed").unlink()
                self.missed.append(f"{point} ({mode})")
                return
            time.sleep(0.02)
        (folder / "armed").unlink()
        lasts = HANG if mode == "hung before" else 0.0
        self.injected.append(Fault(mode, began, time.time() + lasts, point, [int(pid)]))

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
