"""Functions that run as jobs in the tests."""

import functools
import os
import time

from rq import Retry

from django_batches import current_batch, current_job


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
