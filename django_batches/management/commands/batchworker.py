"""`manage.py batchworker`: validates the options and runs the supervisor."""

import logging
import os
import sys
from argparse import ArgumentParser
from dataclasses import fields
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...worker.options import Options
from ...worker.processes import resident_memory
from ...worker.supervisor import Supervisor


class Command(BaseCommand):
    help = (
        "Runs the jobs of the named queues, or of all queues, in executor processes, and runs a coordinator. "
        "On SIGTERM or Ctrl-C it finishes its running jobs and exits; a second signal interrupts them."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("queues", nargs="*", metavar="queue", help="queues whose jobs to run, in order of priority")
        add("--workers", type=int, default=1, metavar="N", help="executor processes; 0: coordinator only (default: 1)")
        add("--burst", action="store_true", help="exit when no job is due or in flight")
        add("--max-jobs", type=int, metavar="N", help="exit after N jobs")
        text = "replace an executor after N jobs; 1 isolates every job"
        add("--max-jobs-per-child", type=int, metavar="N", help=text)
        text = "kill an executor that uses more memory during a job; replace it between jobs above 75 %% of this"
        add("--max-memory-per-child", type=int, metavar="MB", help=text)
        add("--name", default="", help="name of this worker in logs and in RQ (default: the host name)")
        text = "how long jobs may run after SIGTERM (default: until they end)"
        add("--grace", type=float, metavar="SECONDS", help=text)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["workers"] < 0:
            raise CommandError("--workers must be 0 or more.")
        for name in ("max_jobs", "max_jobs_per_child", "max_memory_per_child"):
            if options[name] is not None and options[name] < 1:
                raise CommandError(f"--{name.replace('_', '-')} must be 1 or more.")
        if options["max_jobs"] and not options["workers"]:
            raise CommandError("--max-jobs needs --workers: without executors, no job runs.")
        options["max_memory_per_child"] = _memory(options["max_memory_per_child"])
        _make_log_visible()
        sys.exit(Supervisor(Options(**{field.name: options[field.name] for field in fields(Options)})).run())


def _memory(megabytes: int | None) -> int | None:
    """Returns the limit in bytes. Raises `CommandError` if an idle executor would come close to it."""
    if megabytes is None:
        return None
    used = resident_memory(os.getpid())
    if not used:
        raise CommandError("--max-memory-per-child needs /proc, which only Linux has.")
    if megabytes << 20 < 2 * used:
        raise CommandError(
            f"--max-memory-per-child {megabytes} is too low: this project uses {used >> 20} MB before its first job. "
            f"Use at least {(2 * used >> 20) + 1}."
        )
    return megabytes << 20


def _make_log_visible() -> None:
    """Logs to stderr if the LOGGING setting has no handler for the package."""
    logger = logging.getLogger("django_batches")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
