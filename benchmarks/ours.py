"""django_batches: a batch with a success callback, on the database of DATABASE_URL (none: SQLite)."""

import os
import sys

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"

import django

django.setup()

from django.core.management import call_command

from benchmarks import jobs as tasks
from benchmarks.contend import PROCESSES
from django_batches import Batch

PACKAGES = ("django-batches", "rq", "Django")


def prepare() -> None:
    """An empty database."""
    call_command("migrate", verbosity=0)
    call_command("flush", verbosity=0, interactive=False)


def workers() -> list[list[str]]:
    return [[sys.executable, "manage.py", "batchworker", "--workers", str(PROCESSES)]]


def start(jobs: int) -> None:
    with Batch.open("benchmark") as batch:
        batch.on_success(tasks.done)
        batch.map(tasks.noop, range(jobs))
