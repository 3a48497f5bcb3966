"""One contender, measured once: starts its workers, warms it up, lets it idle, measures, prints one line of JSON.

    python -m benchmarks.contend benchmarks.peers.huey_chord 5000

A contender is a module with `PACKAGES` (of which the versions are told), `workers()` (commands), `start(jobs)` (adds a
group of so many no-op jobs with a callback) and, where they are needed, `prepare()` and `wait(jobs)`. Its callback
calls `tell_done()`. The clock runs from before `start` until the callback has been heard of.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from importlib.metadata import version

from redis import Redis

from example_project.processes import exit_on_signals, running

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
PROCESSES = 2
WARM_UP = 200
"""Jobs before the measured ones: whoever has run them has started and imported everything."""
IDLE = 6.0
"""Seconds between the two: nobody measured starts on the impetus of the warm-up."""
DONE = "benchmark:done"


def tell_done() -> None:
    """What a callback does."""
    Redis.from_url(REDIS_URL).rpush(DONE, 1)


def wait_for_callback(jobs: int) -> None:
    """Waits for `tell_done()`."""
    Redis.from_url(REDIS_URL, socket_timeout=None).blpop([DONE])


def empty_database() -> None:
    """Of the Django that is set up, migrated."""
    from django.core.management import call_command  # noqa: PLC0415 - most contenders have none
    from django.db import connection  # noqa: PLC0415

    if connection.vendor == "postgresql":
        # Not flush: the tables of the contender before stay, and refer to those of Django.
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA public CASCADE")
            cursor.execute("CREATE SCHEMA public")
        call_command("migrate", verbosity=0)
    else:
        call_command("migrate", verbosity=0)
        call_command("flush", verbosity=0, interactive=False)


def measure(module: object, jobs: int) -> float:
    """Seconds from the first job's enqueueing to the callback."""
    begun = time.perf_counter()
    module.start(jobs)
    getattr(module, "wait", wait_for_callback)(jobs)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module")
    parser.add_argument("jobs", type=int)
    options = parser.parse_args()
    exit_on_signals()
    module = importlib.import_module(options.module)
    Redis.from_url(REDIS_URL).flushall()
    getattr(module, "prepare", lambda: None)()
    with ExitStack() as stack:
        for command in module.workers():
            process = stack.enter_context(running(command, grace=10, stdout=sys.stderr))
            stack.callback(end_group, process.pid)  # before it is asked to leave: what it has left behind goes too
        measure(module, WARM_UP)
        time.sleep(IDLE)
        seconds = measure(module, options.jobs)
    versions = {package: version(package) for package in module.PACKAGES}
    print(json.dumps({"jobs": options.jobs, "jobs_per_second": options.jobs / seconds, "versions": versions}))


def end_group(pid: int) -> None:
    """Ends the session of a worker: killed at once, because everything that is measured is over."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
