"""What is wrong with the settings, said by `manage.py check` and at every start."""

from collections.abc import Iterator, Sequence
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
    unknown = [
        Error(f'Unknown key {SETTING}["{key}"].', hint=suggestion(key), id="django_batches.E001")
        for key in found.unknown
    ]
    return [*unknown, *_check_cache(found.CACHE), *_check_database(), *_check_permission(found.STATUS_PERMISSION)]


def _check_cache(alias: str) -> Iterator[CheckMessage]:
    cache = django_settings.CACHES.get(alias)
    if cache is None or "django_redis" not in cache.get("BACKEND", ""):
        yield Error(
            f'CACHES["{alias}"] is no django-redis cache; {SETTING}["CACHE"] must name one.',
            hint='CACHES = {"batches": {"BACKEND": "django_redis.cache.RedisCache", '
            '"LOCATION": "redis://localhost:6379/1"}}',
            id="django_batches.E003",
        )
    elif alias == "default":
        yield Warning(
            'The queues live in CACHES["default"]: cache.clear() of django-redis empties the whole database.',
            hint='Give them an alias and a database number of their own, and name it in DJANGO_BATCHES["CACHE"].',
            id="django_batches.W001",
        )


def _check_database() -> Iterator[CheckMessage]:
    database: dict[str, Any] = django_settings.DATABASES.get(DEFAULT_DB_ALIAS, {})
    if "sqlite3" in database.get("ENGINE", "") and database.get("OPTIONS", {}).get("transaction_mode") != "IMMEDIATE":
        yield Warning(
            "SQLite begins its transactions as readers: two that write at once fail with 'database is locked'.",
            hint='DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 20}',
            id="django_batches.W002",
        )


def _check_permission(path: str) -> Iterator[CheckMessage]:
    if not path:
        return
    try:
        resolve(path)
    except (FunctionNotAllowed, ImportError) as error:
        yield Error(f'{SETTING}["STATUS_PERMISSION"]: {error}', id="django_batches.E004")
