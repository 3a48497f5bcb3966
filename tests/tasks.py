"""Functions that run as jobs in the tests."""

import os
import time


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
