"""django-q2: `async_iter`, which collects the results of all tasks. It has no callback, so the result is polled."""

import os
import sys
import time

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.peers.django_settings"

import django

django.setup()

from django_q.tasks import async_iter, result

from benchmarks.contend import empty_database

PACKAGES = ("django-q2", "Django", "redis")

_group = ""


def noop(index: int) -> int:
    return index  # a task without a result would look unfinished


prepare = empty_database


def workers() -> list[list[str]]:
    return [[sys.executable, "-m", "django", "qcluster"]]


def start(jobs: int) -> None:
    global _group
    _group = async_iter(f"{__name__}.noop", range(jobs), cached=True)


def wait(jobs: int) -> None:
    while result(_group, cached=True) is None:
        time.sleep(0.02)
