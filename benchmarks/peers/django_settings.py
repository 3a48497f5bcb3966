"""Settings of the peers that need Django: the same database, with their own apps."""

import os

from benchmarks.contend import PROCESSES, REDIS_URL
from example_project.settings import database

SECRET_KEY = "only for a benchmark on this machine"
USE_TZ = True
DATABASES = {"default": database(os.environ["DATABASE_URL"]) | {"CONN_MAX_AGE": None}}
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_results", "django_q"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL}}
Q_CLUSTER = {"name": "benchmark", "workers": PROCESSES, "redis": REDIS_URL, "log_level": "ERROR", "timeout": 60}
