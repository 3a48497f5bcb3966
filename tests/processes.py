"""Starts real worker processes for tests, and waits for conditions."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from django.conf import settings
from django.db import connection

ROOT = Path(__file__).resolve().parent.parent


def wait_until(condition, seconds=45.0):
    """Waits until `condition()` is true and returns its value. Raises `AssertionError` if that takes too long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{condition.__qualname__} was not true within {seconds} s")
        time.sleep(0.02)
    return value


class WorkerProcess:
    """`manage.py batchworker` on the database of the test, with its log in a file."""

    SHORT_TIMES = ("-m", "tests.short_times")
    """Pass this as `command` for a worker with leases and intervals of a few seconds."""

    def __init__(self, log, *options, command=("manage.py", "batchworker"), redis_url=None):
        self.log_path = Path(log)
        environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
            "REDIS_URL": redis_url or settings.CACHES["batches"]["LOCATION"],
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        with self.log_path.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command, *map(str, options)],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def log(self):
        return self.log_path.read_text()

    @property
    def pid(self):
        return self.process.pid

    def children(self):
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in found.split()]

    def signal(self, signum):
        self.process.send_signal(signum)

    def wait(self, seconds=45):
        return self.process.wait(seconds)

    def stop(self):
        """Stops the worker and its children: sends SIGTERM, SIGTERM again, then SIGKILL, three seconds apart."""
        for end in (self.process.terminate, self.process.terminate, self.process.kill):
            if self.process.poll() is not None:
                return
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(3)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the process may end between open() and read()
        return False
