"""The example's settings without its debugging: every statement would be remembered."""

from example_project.settings import *  # noqa: F403
from example_project.settings import INSTALLED_APPS

DEBUG = False
INSTALLED_APPS = [*INSTALLED_APPS, "benchmarks"]
# Jobs that shall fail are no news.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"django_batches.jobs": {"level": "CRITICAL"}},
}
