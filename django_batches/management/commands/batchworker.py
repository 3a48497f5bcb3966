"""`manage.py batchworker`: validates the options and runs the supervisor."""

import logging
import os
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...worker.options import Options
from ...worker.processes import resident_memory
from ...worker.supervisor import Supervisor


class Command(BaseCommand):
    help = (
        "Runs jobs in executor processes, and a coordinator. Works the named queues, or all queues. "
        "On SIGTERM or Ctrl-C it finishes its running jobs and exits; a second signal interrupts them."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("queues", nargs="*", metavar="queue", help="queues to work, in order of priority")
        parser.add_argument(
            "--workers", type=int, default=1, metavar="N", help="executor processes; 0: coordinator only (default: 1)"
        )
        parser.add_argument("--burst", action="store_true", help="exit when no job is due or in flight")
        parser.add_argument("--max-jobs", type=int, metavar="N", help="exit after N jobs")
        parser.add_argument(
            "--max-jobs-per-child", type=int, metavar="N", help="replace an executor after N jobs; 1 isolates every job"
        )
        parser.add_argument(
            "--max-memory-per-child",
            type=int,
            metavar="MB",
            help="kill an executor that uses more during a job; replace it between two jobs above three quarters of it",
        )
        parser.add_argument("--name", default="", help="name of this worker in logs and in RQ (default: the host name)")
        parser.add_argument(
            "--grace", type=float, metavar="SECONDS", help="how long jobs may run after SIGTERM (default: to their end)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["workers"] < 0:
            raise CommandError("--workers must be 0 or more.")
        for name in ("max_jobs", "max_jobs_per_child", "max_memory_per_child"):
            if options[name] is not None and options[name] < 1:
                raise CommandError(f"--{name.replace('_', '-')} must be 1 or more.")
        if options["max_jobs"] and not options["workers"]:
            raise CommandError("--max-jobs needs --workers: without executors, no job runs.")
        memory = _memory(options["max_memory_per_child"])
        _make_log_visible()
        names = ("queues", "workers", "burst", "max_jobs", "max_jobs_per_child", "name", "grace")

        sys.exit(Supervisor(Options(**{name: options[name] for name in names}, max_memory_per_child=memory)).run())


def _memory(megabytes: int | None) -> int | None:
    """The limit in bytes. Raises `CommandError` if an executor would reach it without a job."""
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
