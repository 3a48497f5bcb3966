"""The example's settings without DEBUG, which would record every SQL statement."""

from example_project.settings import *  # noqa: F403
from example_project.settings import INSTALLED_APPS

DEBUG = False
INSTALLED_APPS = [*INSTALLED_APPS, "benchmarks"]
# Jobs that fail on purpose are not logged.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"django_batches.jobs": {"level": "CRITICAL"}},
}
