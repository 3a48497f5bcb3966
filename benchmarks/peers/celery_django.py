"""Celery: a chord with its results in the Django database (django-celery-results), one row per job as here."""

import os

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.peers.django_settings"

import django

django.setup()

from celery import Celery, chord

from benchmarks.contend import REDIS_URL, empty_database, report_done
from benchmarks.peers.celery_chord import celery_worker

PACKAGES = ("celery", "django-celery-results", "Django")

app = Celery("benchmark", broker=REDIS_URL, backend="django-db")


@app.task
def noop(index: int) -> None:
    pass


@app.task
def done(results: list) -> None:
    report_done()


prepare = empty_database


def workers() -> list[list[str]]:
    return [celery_worker(__name__)]


def start(jobs: int) -> None:
    chord(noop.s(index) for index in range(jobs))(done.s())
