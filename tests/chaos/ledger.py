"""A file to which the functions of the jobs append when they run, outside of Redis and the database.

Times come from the monotonic clock, which all processes of the machine share, because the clock of a host may be wrong.
"""

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

FOLDER = "CHAOS_FOLDER"


@dataclass
class Run:
    """One run of one dispatch of a job or callback; times are those of `time.time()`."""

    job: str
    dispatch: int
    batch: str
    event: str
    """Empty for a job of the batch."""
    pid: int
    started: float
    finished: float | None = None
    raised: float | None = None
    is_last_of_pid: bool = True
    """Its process has started no other run after it."""


def write(kind: str, job: str, dispatch: int, batch: str, event: str) -> None:
    """Appends a line in one write. With O_APPEND it is atomic, even if SIGKILL follows."""
    append("ledger", f"{time.monotonic():.6f} {kind} {job} {dispatch} {os.getpid()} {batch} {event or '-'}\n")


def acknowledge(batch: str, count: int) -> None:
    """Records that `Batch.open` has succeeded, for a batch with so many jobs."""
    append("acknowledged", f"{batch} {count}\n")


def append(name: str, line: str) -> None:
    file = os.open(Path(os.environ[FOLDER], name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(folder: Path) -> list[Run]:
    """All runs, in order of their start."""
    runs: list[Run] = []
    current: dict[int, Run] = {}
    path = folder / "ledger"
    since = time.time() - time.monotonic()
    for line in path.read_text().splitlines() if path.exists() else []:
        stamp, kind, job, dispatch, pid, batch, event = line.split()
        if kind == "start":
            if before := current.get(int(pid)):
                before.is_last_of_pid = False
            run = Run(job, int(dispatch), batch, event.strip("-"), int(pid), since + float(stamp))
            runs.append(run)
            current[int(pid)] = run
        elif kind == "finish":
            current[int(pid)].finished = since + float(stamp)
        else:
            current[int(pid)].raised = since + float(stamp)
    return runs


def by_job(runs: list[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.job].append(run)
    return found
