"""Functions that run as jobs in the tests."""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import time

from django.db import connection, transaction
from django.utils import timezone, translation
from rq import Retry

from django_batches import Batch, current_batch, current_job


def ok(value=None):
    return value


def boom(message="no"):
    raise ValueError(message)


def append(path, text):
    """A ledger outside of Redis and the database."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


def told(batch, path, text=""):
    append(path, f"{text}:{batch.status}:{batch.succeeded}/{batch.total}")
    return f"told {text}"


def sleepy(seconds):
    time.sleep(seconds)


_hoard = []


def hoard(megabytes, seconds=0.0, keep=False):
    """Holds so much memory for so long; with `keep` the process holds it for ever."""
    held = b"x" * (megabytes << 20)
    if keep:
        _hoard.append(held)
    time.sleep(seconds)
    return os.getpid()


def kill_self(signum=9):
    os.kill(os.getpid(), signum)


def grow(path, count):
    """Adds siblings to its own batch."""
    current_batch().map(append_item, range(count), path)
    return count


def append_item(item, path):
    append(path, item)


def who_am_i():
    return [str(current_batch().pk), str(current_job().pk)]


def whose_callback(batch):
    job = current_job()
    return [str(current_batch().pk), str(batch.pk), job.event]


def retry_later(path, times):
    append(path, "run")
    return Retry(max=times, interval=0)


def retry_strangely(path, kind):
    append(path, "run")
    return {
        "no number": Retry(max=float("nan")),
        "endless": Retry(max=float("inf")),
        "endless interval": Retry(max=1, interval=[float("inf")]),
    }[kind]


def flaky(path, failures):
    """Fails so many times, counted in the ledger."""
    append(path, "run")
    with open(path) as file:
        runs = len(file.readlines())
    if runs <= failures:
        raise ValueError(f"run {runs}")
    return runs


def wait_for_batch():
    current_batch().wait()


def write_metadata(batch):
    batch.metadata["x"] = 1
    batch.save()


def exit_now():
    raise SystemExit(3)


def interrupt():
    raise KeyboardInterrupt


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    def __reduce__(self):
        raise RuntimeError("no pickle")


def unprintable():
    raise Unprintable


def recurse():
    return recurse()


def returns(kind):
    return {
        "nan": float("nan"),
        "object": object(),
        "surrogate": "\ud800",
        "nul": "a\x00b",
        "large": "x" * 5_000_000,
        "int keys": {1: 2},
        "deep": functools.reduce(lambda inner, _: [inner], range(100_000), []),
    }[kind]


def raises(message):
    raise ValueError(message)


async def asynchronous(value):
    return value


def overrun():
    time.sleep(30)


def swallow_timeout():
    try:
        time.sleep(30)
    except Exception:
        time.sleep(30)


def memory():
    raise MemoryError


def keywords(**kwargs):
    return kwargs


def flaky_item(item):
    if current_job().attempts == 0 and item % 2:
        raise ValueError(item)


def fail_odd(item):
    if item % 2:
        raise ValueError("odd")


def add_to_ended(batch):
    current_batch().enqueue(ok)


def observe():
    """What a job can see of the process it runs in."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return {
        "language": translation.get_language(),
        "time zone": timezone.get_current_timezone_name(),
        "cwd": os.getcwd(),
        "handler": str(signal.getsignal(signal.SIGUSR2)),
        "autocommit": connection.get_autocommit(),
        "atomic": connection.in_atomic_block,
        "umask": os.umask(0o022) or os.umask(0o022),
    }


def leak(kind):
    if kind == "translation":
        translation.activate("de")
    elif kind == "timezone":
        timezone.activate("Asia/Tokyo")
    elif kind == "cwd":
        os.chdir("/")
    elif kind == "signal":
        signal.signal(signal.SIGUSR2, lambda *_: None)
    elif kind == "autocommit":
        transaction.set_autocommit(False)
    elif kind == "atomic":
        transaction.atomic().__enter__()
    elif kind == "closed":
        transaction.atomic().__enter__()
        connection.close()
    elif kind == "broken":
        connection.cursor().close()
        connection.connection.close()
    elif kind == "umask":
        os.umask(0o077)


def raises_long(length):
    raise ValueError("å" * length)


def ok_callback(batch):
    return None


def begin_and_end(path, seconds):
    append(path, "begin")
    time.sleep(seconds)
    append(path, "end")


def begin_and_end_at(path, gate):
    append(path, "begin")
    pass_gate(gate)
    append(path, "end")


def write_pid_and_sleep(path):
    append(path, os.getpid())
    time.sleep(60)


def pid():
    return os.getpid()


def segfault():
    ctypes.string_at(0)


def hard_exit():
    os._exit(3)


def append_slowly(item, path):
    time.sleep(0.005)
    append(path, item)


def hold_batch(path, gate):
    with transaction.atomic():
        current_batch().enqueue(ok)
        append(path, "holding")
        pass_gate(gate)
        append(path, "released")


def long_name():
    pass


long_name.__qualname__ = "x" * 300


def terminate_a_child():
    """A program that a job starts must be terminable."""
    child = subprocess.Popen(["sleep", "60"])
    child.terminate()
    return child.wait(10)


def fork_and_return(path):
    """A fork that comes back out of the job must not speak for it."""
    if os.fork() == 0:
        raise SystemExit(0)
    os.wait()
    append(path, "parent")
    return "parent"


def begin_and_end_item(path, item):
    append(path, f"begin {item}")
    time.sleep(0.02)
    append(path, f"end {item}")


def cancel_own_batch():
    current_batch().cancel()


def add_another():
    current_batch().enqueue(add_another)


def key_error():
    raise KeyError("a subclass of LookupError")


def sort(values):
    if len(values) <= 1:
        return values
    middle = len(values) // 2
    with Batch.open("merge") as batch:
        batch.on_success(merge)
        batch.map(sort, [values[:middle], values[middle:]])
    return batch


def merge(batch):
    left, right = batch.results()
    return sorted([*left, *right])


def descend(path, depth, width=1, fail_if=None):
    """A tree of batches: each job opens one below it; the leaves fail while the file `fail_if` exists."""
    append(path, f"run {depth}")
    if depth == 0:
        if fail_if and os.path.exists(fail_if):
            raise ValueError("leaf")
        return 1
    with Batch.open(f"depth {depth}", max_attempts=current_job().max_attempts) as batch:
        batch.on_success(add_up, path, depth)
        for _ in range(width):
            batch.enqueue(descend, path, depth - 1, width, fail_if)
    return batch


def add_up(batch, path, depth):
    append(path, f"callback {depth}")
    return sum(batch.results())


def open_child(path, func="tests.tasks.ok", count=2, **options):
    with Batch.open("child", **options) as batch:
        batch.on_finish(told, path, "child")
        for _ in range(count):
            batch.enqueue(func)
    return "own result"


def return_child(**options):
    with Batch.open("child", **options) as batch:
        batch.map(ok, [1, None, "three"])
    return batch


def return_child_over_a_lost_connection():
    child = return_child()
    connection.connection.close()
    return child


def return_large_child(size):
    with Batch.open("child") as batch:
        batch.map(ok, ["x" * size] * 3)
    return batch


def child_with_callback(event, func):
    with Batch.open("child") as batch:
        getattr(batch, f"on_{event}")(func)
        batch.enqueue(ok)
    return "own result"


def boom_callback(batch):
    raise ValueError("callback")


def boom_callback_while(batch, path):
    if os.path.exists(path):
        raise ValueError("callback")
    return "mended"


def return_child_with(path):
    with Batch.open("child") as batch:
        batch.on_success(boom_callback_while, path)
        batch.enqueue(ok)
    return batch


def return_which(kind):
    if kind == "own":
        return current_batch()
    if kind == "detached":
        with Batch.open(parent=None) as batch:
            batch.enqueue(ok)
        return batch
    if kind == "rolled back":
        with contextlib.suppress(RuntimeError), transaction.atomic():
            with Batch.open() as batch:
                batch.enqueue(ok)
            raise RuntimeError
        return batch
    return Batch.objects.exclude(pk=current_batch().pk).earliest("created_at")


def empty_child():
    with Batch.open() as batch:
        batch.on_success(whose_callback)
    return batch


def raise_in_block():
    with contextlib.suppress(ZeroDivisionError), Batch.open():
        raise ZeroDivisionError
    return "went on"


def next_stage(batch, path, stages):
    append(path, f"stage {stages}")
    if not stages:
        return "report"
    with Batch.open(f"stage {stages}") as stage:
        stage.on_success(next_stage, path, stages - 1)
        stage.map(ok, range(2))
    return stage


def add_to_parent(batch):
    batch.parent.batch.enqueue(ok, "added")


def detach():
    with Batch.open(parent=None) as batch:
        batch.enqueue(boom)
    return str(batch.pk)


def two_children():
    for description, job in (("good", ok), ("bad", boom)):
        with Batch.open(description) as batch:
            batch.enqueue(job)


def pass_gate(path):
    """Waits for its byte in a named pipe: so many bytes, so many runs end."""
    with open(path, "rb", buffering=0) as pipe:
        pipe.read(1)


def in_chunks(chunks, path, count):
    for chunk in range(chunks):
        with Batch.open(f"chunk {chunk}") as batch:
            batch.map(pass_gate, [path] * count)


def killed_with_a_child(path, place):
    """Opens a child; the first run is killed in the middle of it, or after it was sealed."""
    append(path, "run")
    is_first = current_job().attempts == 0
    with Batch.open("child") as batch:
        # The first one is an orphan soon: its jobs must not all have ended when that is seen.
        batch.map(sleepy, [0.1 if is_first else 0.005] * 20)
        if is_first and place == "inside the block":
            batch.block.flush()
            kill_self()
    if is_first:
        kill_self()
    return batch


def fill_a_cancelled_child(above):
    with Batch.open("child") as child:
        child.enqueue(ok)
        (current_batch() if above else Batch.objects.get(pk=child.pk)).cancel("too many")
        if above:
            Batch.objects.get(pk=child.pk).cancel("too many")
        child.block.flush()


def fill_a_cancelled_child_in_a_callback(batch):
    fill_a_cancelled_child(above=False)


def retry(batch_id):
    Batch.objects.get(pk=batch_id).retry_failed()


def retry_in_a_callback(batch, batch_id):
    retry(batch_id)


def stopped_slowly(job, connection):
    append(job.meta["path"], "stopping")
    pass_gate(job.meta["gate"])
    append(job.meta["path"], "stopped")
