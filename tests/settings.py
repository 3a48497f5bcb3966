"""The example's settings, with functions to run as jobs and databases of the test's own."""

from example_project.settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "django_rq", "tests"]
DATABASES["default"]["TEST"] = {
    "NAME": None if "postgres" in DATABASES["default"]["ENGINE"] else str(DATA_DIR / "test.sqlite3")
}
DATABASES["default"]["CONN_MAX_AGE"] = 0
# A database number of its own, because the tests empty it.
CACHES["batches"]["LOCATION"] = urlsplit(CACHES["batches"]["LOCATION"])._replace(path="/15").geturl()
DJANGO_BATCHES = {"CACHE": "batches", "NAMESPACE": "tests"}
RQ_QUEUES = {"default": {"USE_REDIS_CACHE": "batches"}}
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
LOGGING["loggers"] = {}
