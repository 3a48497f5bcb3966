"""The functions that run as jobs and callbacks of a round: each tells the ledger when it starts and how it ends."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

from django_batches import current_batch
from django_batches.context import running

from . import ledger


class Flaky(Exception):
    """An attempt that fails."""


@contextmanager
def told(event: str = "") -> Iterator[str]:
    run = running.get()
    assert run is not None
    about = run.job_id.hex, run.dispatch, run.batch_id.hex, event
    ledger.write("start", *about)
    try:
        yield f"{run.job_id.hex}{run.dispatch}"
    except BaseException:
        ledger.write("raise", *about)
        raise
    ledger.write("finish", *about)


def work(item: int, seconds: float, failing: int = 0) -> int:
    """Sleeps; raises in `failing` of 100 runs, which ones is decided by the id of the run."""
    with told() as run:
        time.sleep(seconds)
        if crc32(run.encode()) % 100 < failing:
            raise Flaky(item)
        return item


def work_once_healed(item: int, name: str) -> int:
    """Raises until a file of this name is there."""
    with told():
        if not Path(os.environ[ledger.FOLDER], name).exists():
            raise Flaky(item)
        return item


def grow(item: int, count: int) -> int:
    """Adds siblings to its batch."""
    with told():
        batch = current_batch()
        assert batch is not None
        batch.map(work, range(count), 0.002)
        return item


def callback(batch, event: str) -> str:
    with told(event):
        time.sleep(0.002)
        return event
