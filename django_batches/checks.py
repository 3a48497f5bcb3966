"""What is wrong with the settings, said by `manage.py check` and at every start."""

from collections.abc import Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS

from .conf import SETTING, settings, suggestion
from .exceptions import FunctionNotAllowed
from .functions import resolve


def check_settings(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    try:
        found = settings()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="django_batches.E002")]
    problems: list[CheckMessage] = [
        Error(f'Unknown key {SETTING}["{key}"].', hint=suggestion(key), id="django_batches.E001")
        for key in found.unknown
    ]
    cache = django_settings.CACHES.get(found.CACHE)
    if cache is None or "django_redis" not in cache.get("BACKEND", ""):
        problems.append(
            Error(
                f'CACHES["{found.CACHE}"] is no django-redis cache; {SETTING}["CACHE"] must name one.',
                hint='CACHES = {"batches": {"BACKEND": "django_redis.cache.RedisCache", '
                '"LOCATION": "redis://localhost:6379/1"}}',
                id="django_batches.E003",
            )
        )
    elif found.CACHE == "default":
        problems.append(
            Warning(
                'The queues live in CACHES["default"]: cache.clear() of django-redis empties the whole database.',
                hint='Give them an alias and a database number of their own, and name it in DJANGO_BATCHES["CACHE"].',
                id="django_batches.W001",
            )
        )
    database: dict[str, Any] = django_settings.DATABASES.get(DEFAULT_DB_ALIAS, {})
    if "sqlite3" in database.get("ENGINE", "") and database.get("OPTIONS", {}).get("transaction_mode") != "IMMEDIATE":
        problems.append(
            Warning(
                "SQLite begins its transactions as readers: two that write at once fail with 'database is locked'.",
                hint='DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 20}',
                id="django_batches.W002",
            )
        )
    if found.STATUS_PERMISSION:
        try:
            resolve(found.STATUS_PERMISSION)
        except (FunctionNotAllowed, ImportError) as error:
            problems.append(Error(f'{SETTING}["STATUS_PERMISSION"]: {error}', id="django_batches.E004"))
    return problems
