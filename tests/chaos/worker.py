"""`manage.py batchworker` with short times, and with its children written down.

    python -m tests.chaos.worker --workers 2

A lost host is noticed within 20 s instead of 2 minutes, so that a round need not wait so long; with CHAOS_REAL_TIMES=1
it waits.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

from django.core.management import execute_from_command_line

from tests import short_times

from . import ledger, points

REAL_TIMES = "CHAOS_REAL_TIMES"
CLOCK = "CHAOS_CLOCK"
"""Seconds by which the clock of this host is wrong."""
IS_SHORT = not os.environ.get(REAL_TIMES)
LEASE = short_times.LEASE if IS_SHORT else 45
RECOVERY = 25.0 if IS_SHORT else 130.0
"""Seconds within which everything lost is back."""


def record_children() -> None:
    """Appends "supervisor pid name" for each child, so that faults find coordinators and executors by name."""
    fork = supervisor.fork

    def fork_and_record(work, name: str) -> int:
        def work_in_role() -> None:
            role = name.rpartition(".")[2]
            passed.role = "executor" if role.isdigit() else role
            work()

        pid = fork(work_in_role, name)
        with Path(os.environ[ledger.FOLDER], "children").open("a") as file:
            file.write(f"{os.getpid()} {pid} {name}\n")
        return pid

    supervisor.fork = fork_and_record


def shift_clock(seconds: float) -> None:
    """Shifts the clock of this process and its children, but not the monotonic clock."""
    time_machine.travel(timedelta(seconds=seconds)).start()


if __name__ == "__main__":
    import django
    import time_machine

    django.setup()
    from django_batches.worker import supervisor

    if IS_SHORT:
        short_times.shorten()
    if wrong := float(os.environ.get(CLOCK, 0)):
        shift_clock(wrong)
    passed = points.Points("supervisor")
    if os.environ.get(points.WANTED):
        points.install(passed)
    record_children()
    execute_from_command_line([sys.argv[0], "batchworker", *sys.argv[1:]])
