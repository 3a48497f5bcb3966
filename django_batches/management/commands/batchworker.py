"""`manage.py batchworker`: parses the options, judges them, runs the supervisor."""

import logging
import os
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...worker.processes import resident_memory
from ...worker.supervisor import Plan, Supervisor


class Command(BaseCommand):
    help = (
        "Works batches: runs jobs in executor processes and keeps the books. Without names it works every queue. "
        "SIGTERM or Ctrl-C: finishes the jobs at hand and leaves; a second one interrupts them."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("queues", nargs="*", metavar="queue", help="queues to work, the first one first")
        parser.add_argument(
            "--workers", type=int, default=1, metavar="N", help="executor processes; 0: only keep the books (default 1)"
        )
        parser.add_argument("--burst", action="store_true", help="leave when nothing is due or in flight any more")
        parser.add_argument("--max-jobs", type=int, metavar="N", help="leave after N jobs")
        parser.add_argument(
            "--max-jobs-per-child", type=int, metavar="N", help="replace an executor after N jobs; 1 isolates every job"
        )
        parser.add_argument(
            "--max-memory-per-child",
            type=int,
            metavar="MB",
            help="kill an executor that holds more in a job; replace it between two jobs at three quarters of it",
        )
        parser.add_argument("--name", default="", help="name of this worker in logs and in RQ (default: the host's)")
        parser.add_argument(
            "--grace",
            type=float,
            metavar="SECONDS",
            help="how long jobs may go on after SIGTERM (default: to their end)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["workers"] < 0:
            raise CommandError("--workers must be 0 or more.")
        for name in ("max_jobs", "max_jobs_per_child", "max_memory_per_child"):
            if options[name] is not None and options[name] < 1:
                raise CommandError(f"--{name.replace('_', '-')} must be 1 or more.")
        if options["max_jobs"] and not options["workers"]:
            raise CommandError("--max-jobs needs --workers: without executors no job is run here.")
        memory = _memory(options["max_memory_per_child"])
        _make_log_visible()
        names = ("queues", "workers", "burst", "max_jobs", "max_jobs_per_child", "name", "grace")

        sys.exit(Supervisor(Plan(**{name: options[name] for name in names}, max_memory_per_child=memory)).run())


def _memory(megabytes: int | None) -> int | None:
    """Bytes; refused where executors would reach the limit without a job."""
    if megabytes is None:
        return None
    held = resident_memory(os.getpid())
    if not held:
        raise CommandError("--max-memory-per-child needs /proc, which only Linux has.")
    if megabytes << 20 < 2 * held:
        raise CommandError(
            f"--max-memory-per-child {megabytes} is too little: this project takes {held >> 20} MB before the first "
            f"job. Give at least {(2 * held >> 20) + 1}."
        )
    return megabytes << 20


def _make_log_visible() -> None:
    """Without a LOGGING setting for us, what the worker does would be said to nobody."""
    logger = logging.getLogger("django_batches")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
