"""Measures one contender once: starts its workers, runs a warm-up, idles, measures, and prints one line of JSON.

    python -m benchmarks.contend benchmarks.peers.huey_chord 5000

A contender is a module with `PACKAGES` (whose versions are reported), `workers()` (commands), `start(jobs)` (adds a
group of that many no-op jobs with a callback) and, if needed, `prepare()` and `wait(jobs)`. Its callback calls
`report_done()`. The time counts from the call of `start` until the callback has reported.
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
"""Jobs before the measured ones, after which every worker has started and imported everything."""
IDLE = 6.0
"""Seconds between the warm-up and the measurement, so that all contenders start idle."""
DONE = "benchmark:done"


def report_done() -> None:
    """Called by each callback."""
    Redis.from_url(REDIS_URL).rpush(DONE, 1)


def wait_for_callback(jobs: int) -> None:
    """Waits for `report_done()`."""
    Redis.from_url(REDIS_URL, socket_timeout=None).blpop([DONE])


def empty_database() -> None:
    """Empties and migrates the database of the current Django settings."""
    from django.core.management import call_command  # noqa: PLC0415 - most contenders have none
    from django.db import connection  # noqa: PLC0415

    if connection.vendor == "postgresql":
        # Not flush: the tables of the previous contender remain, and refer to those of Django.
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA public CASCADE")
            cursor.execute("CREATE SCHEMA public")
        call_command("migrate", verbosity=0)
    else:
        call_command("migrate", verbosity=0)
        call_command("flush", verbosity=0, interactive=False)


def measure(module: object, jobs: int) -> float:
    """Returns the seconds from the first enqueue to the callback."""
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
            stack.callback(
                end_group, process.pid
            )  # runs first, so that processes which the worker leaves behind are killed, too
        measure(module, WARM_UP)
        time.sleep(IDLE)
        seconds = measure(module, options.jobs)
    versions = {package: version(package) for package in module.PACKAGES}
    print(json.dumps({"jobs": options.jobs, "jobs_per_second": options.jobs / seconds, "versions": versions}))


def end_group(pid: int) -> None:
    """Kills all processes in the session of a worker; the measurement is over."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
