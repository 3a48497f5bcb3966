"""The example's settings, with functions to run as jobs and databases of the test's own."""

import os
from urllib.parse import urlsplit

import django

from example_project.settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "django_rq", "tests"]
DATABASES["default"]["TEST"] = {
    "NAME": None if "postgres" in str(DATABASES["default"]["ENGINE"]) else str(DATA_DIR / "test.sqlite3")
}
DATABASES["default"]["CONN_MAX_AGE"] = 0
ROOT_URLCONF = "tests.urls"
# A database number of its own, because the tests empty it.
CACHES["batches"]["LOCATION"] = urlsplit(CACHES["batches"]["LOCATION"])._replace(path="/15").geturl()
DJANGO_BATCHES = {"CACHE": "batches", "NAMESPACE": "tests"}
RQ_QUEUES = {"default": {"USE_REDIS_CACHE": "batches"}}
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
if "TEST_DATABASE_NAME" not in os.environ:
    LOGGING["loggers"] = {}  # pytest's own handler sees what propagates

# A worker process of a test works on the test's database.
DATABASES["default"]["NAME"] = os.environ.get("TEST_DATABASE_NAME", DATABASES["default"]["NAME"])

_framework = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
TASKS = {
    "default": {"BACKEND": "django_batches.tasks.BatchesBackend", "QUEUES": ["default", "images", "mail"]},
    "immediate": {"BACKEND": f"{_framework}.backends.immediate.ImmediateBackend", "QUEUES": []},
}
