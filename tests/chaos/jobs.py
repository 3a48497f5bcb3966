"""The jobs and callbacks of a round. Each writes to the ledger when it starts and how it ends."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

from django_batches import Batch, current_batch
from django_batches.models.context import running

from . import ledger


class Flaky(Exception):
    """An attempt that fails."""


@contextmanager
def recorded(event: str = "") -> Iterator[str]:
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
    """Sleeps; raises in `failing` of 100 runs, chosen by the id of the run."""
    with recorded() as run:
        time.sleep(seconds)
        if crc32(run.encode()) % 100 < failing:
            raise Flaky(item)
        return item


def hoard(item: int) -> int:
    """In 40 of 100 runs it uses more memory than its executor may, and is killed."""
    with recorded() as run:
        if crc32(run.encode()) % 100 < 40:
            memory = b"x" * (300 << 20)
            time.sleep(2.0)
            del memory
        return item


def work_once_healed(item: int, name: str) -> int:
    """Raises until a file with this name exists."""
    with recorded():
        if not Path(os.environ[ledger.FOLDER], name).exists():
            raise Flaky(item)
        return item


def grow(item: int, count: int) -> int:
    """Adds siblings to its batch."""
    with recorded():
        batch = current_batch()
        assert batch is not None
        batch.map(work, range(count), 0.002)
        return item


def callback(batch, event: str) -> str:
    with recorded(event):
        time.sleep(0.002)
        return event


# Trees: the following functions open batches inside jobs and callbacks.


def register_callbacks(batch, success=callback) -> None:
    """Registers one callback for each event."""
    batch.using(max_attempts=20).on_success(success, "success")
    for event in ("failure", "finish", "attempted"):
        getattr(batch.using(max_attempts=20), f"on_{event}")(callback, event)


def open_child(name: str, func, items, *args, success=callback, **options):
    """Opens a batch with a job per item, and acknowledges it as the load does."""
    with Batch.open(name, timeout=60, **options) as child:
        register_callbacks(child, success)
        count = child.map(func, items, *args)
    ledger.acknowledge(child.pk.hex, count)
    return child


def gathered(batch, event: str) -> list:
    """A success callback; its return value becomes the result of the job that returned the batch."""
    with recorded(event):
        return [batch.pk.hex, sorted(map(str, batch.results()))]


def branch(item: int, depth: int, seconds: float, failing: int, failing_after: int):
    """Returns a child batch, which has children too. Raises after opening it in `failing_after` of 100 runs."""
    with recorded() as run:
        if depth > 1:
            more = (depth - 1, seconds, failing, failing_after)
            child = open_child(f"branch {depth}", branch, range(2), *more, success=gathered, max_attempts=6)
        else:
            child = open_child("leaves", work, range(3), seconds, failing, success=gathered, max_attempts=6)
        if crc32(run.encode()) % 100 < failing_after:
            raise Flaky(item)
        return child


def wait_for_child(item: int, seconds: float, failing: int) -> int:
    """Returns a value of its own, but still waits for its child."""
    with recorded():
        open_child("waited for", work, range(3), seconds, failing, max_attempts=2)
        return item


def wait_for_healed(item: int, name: str) -> int:
    with recorded():
        open_child("healed below", work_once_healed, range(2), name)
        return item


def detach(item: int, seconds: float) -> int:
    """Opens an independent batch, for which it does not wait."""
    with recorded():
        open_child("detached", work, range(3), seconds, max_attempts=6, parent=None)
        return item


def callback_with_child(batch, event: str) -> int:
    """A callback that waits for a child batch."""
    with recorded(event):
        open_child("of a callback", work, range(2), 0.01, max_attempts=20)
        return 1
