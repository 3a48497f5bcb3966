"""django_batches: a batch with a success callback, on the database of DATABASE_URL, else SQLite."""

import os
import sys

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"

import django

django.setup()

from benchmarks import jobs as tasks
from benchmarks.contend import PROCESSES, empty_database
from django_batches import Batch

PACKAGES = ("django-batches", "rq", "Django")


prepare = empty_database


def workers() -> list[list[str]]:
    return [[sys.executable, "manage.py", "batchworker", "--workers", str(PROCESSES)]]


def start(jobs: int) -> None:
    with Batch.open("benchmark") as batch:
        batch.on_success(tasks.done)
        batch.map(tasks.noop, range(jobs))
