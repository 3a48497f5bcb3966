"""What is wrong with the settings, said by `manage.py check` and at every start."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS
from django.utils.module_loading import import_string
from django_redis.cache import RedisCache
from rq.serializers import resolve_serializer

from .. import database
from ..calls.functions import bound_names
from ..conf import SETTING, settings, suggestion
from ..exceptions import FunctionNotAllowed
from ..transport.client import client


def check_settings(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    try:
        found = settings()
    except ImproperlyConfigured as error:
        return [Error(line, id="django_batches.E002") for line in str(error).splitlines()]
    unknown = [
        Error(f'Unknown key {SETTING}["{key}"].', hint=suggestion(key), id="django_batches.E001")
        for key in found.unknown
    ]
    return [
        *unknown,
        *_check_cache(found.CACHE),
        *_check_database(),
        *_check_function("STATUS_PERMISSION", found.STATUS_PERMISSION, "django_batches.E004", "request", "batch"),
        *_check_function("ON_FAILURE", found.ON_FAILURE, "django_batches.E006", "batch"),
        *_check_serializer(found.RQ_SERIALIZER),
    ]


def _check_cache(alias: str) -> Iterator[CheckMessage]:
    cache: dict[str, Any] | None = django_settings.CACHES.get(alias)
    if cache is None or not _is_django_redis(cache.get("BACKEND", "")):
        yield Error(
            f'CACHES["{alias}"] is no django-redis cache; {SETTING}["CACHE"] must name one.',
            hint='CACHES = {"batches": {"BACKEND": "django_redis.cache.RedisCache", '
            '"LOCATION": "redis://localhost:6379/1"}}',
            id="django_batches.E003",
        )
        return
    if "ShardClient" in cache.get("OPTIONS", {}).get("CLIENT_CLASS", ""):
        yield Error(
            f'CACHES["{alias}"] spreads its keys over several servers (ShardClient); a queue lives on one.',
            hint="Give the queues an alias of their own, with one LOCATION and the default CLIENT_CLASS.",
            id="django_batches.E005",
        )
    else:
        try:
            client()
        except ImproperlyConfigured as error:
            yield Error(str(error), id="django_batches.E015")
    if alias == "default":
        yield Warning(
            'The queues live in CACHES["default"]: cache.clear() of django-redis empties the whole database.',
            hint='Give them an alias and a database number of their own, and name it in DJANGO_BATCHES["CACHE"].',
            id="django_batches.W001",
        )


def _is_django_redis(backend: str) -> bool:
    try:
        cache = import_string(backend)
    except ImportError:
        return False
    return isinstance(cache, type) and issubclass(cache, RedisCache)


def _check_database() -> Iterator[CheckMessage]:
    alias = database.alias()
    configured: dict[str, Any] = django_settings.DATABASES.get(alias, {})
    if kind := database.unsupported():
        yield Error(
            f'The batches would be kept in "{alias}", which is {kind}: it lacks UPDATE ... RETURNING and unique '
            "constraints with a condition, by which each job is counted once.",
            hint="Keep them in PostgreSQL or SQLite, by a database router if need be.",
            id="django_batches.E014",
        )
    if not configured.get("AUTOCOMMIT", True):
        yield Error(
            f'DATABASES["{alias}"] has AUTOCOMMIT = False: nothing that the worker writes would be committed.',
            hint="Leave it out, and begin your own transactions by transaction.atomic().",
            id="django_batches.E016",
        )
    if (
        "sqlite3" in configured.get("ENGINE", "")
        and configured.get("OPTIONS", {}).get("transaction_mode") != "IMMEDIATE"
    ):
        yield Warning(
            "SQLite begins its transactions as readers: two that write at once fail with 'database is locked'.",
            hint=f'DATABASES["{alias}"]["OPTIONS"] = {{"transaction_mode": "IMMEDIATE", "timeout": 20}}',
            id="django_batches.W002",
        )
    if alias != DEFAULT_DB_ALIAS:
        yield Warning(
            f'A database router keeps the batches in "{alias}": transaction.atomic() on "{DEFAULT_DB_ALIAS}" neither '
            "delays nor undoes them.",
            hint=f'Open batches inside transaction.atomic(using="{alias}"), or keep them beside your own tables. '
            "Silence this check if that is what you want.",
            id="django_batches.W003",
        )


def _check_function(key: str, path: str, id: str, *takes: str) -> Iterator[CheckMessage]:
    if not path:
        return
    try:
        bound_names(path, 0, takes, {})
    except (FunctionNotAllowed, ImportError, TypeError) as error:
        hint = f"Write the dotted path of a function of an installed app that takes ({', '.join(takes)})."
        yield Error(f'{SETTING}["{key}"]: {error}', hint=hint, id=id)


def _check_serializer(name: str) -> Iterator[CheckMessage]:
    try:
        resolve_serializer(name)
    except (ImportError, AttributeError, ValueError, TypeError, NotImplementedError) as error:
        yield Error(
            f'{SETTING}["RQ_SERIALIZER"] is {name!r}, and RQ finds no serializer there ({error}).',
            hint="Write 'pickle', 'json', or the path that `rq worker --serializer` is given.",
            id="django_batches.E007",
        )
