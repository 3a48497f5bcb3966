"""Checks of the settings, for `manage.py check` and the start of every command."""

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
    return [
        *(
            Error(f'Unknown key {SETTING}["{key}"].', hint=suggestion(key), id="django_batches.E001")
            for key in found.unknown
        ),
        *_check_cache(found.CACHE),
        *_check_database(),
        *_check_function("STATUS_PERMISSION", found.STATUS_PERMISSION, "django_batches.E004", "request", "batch"),
        *_check_function("ON_FAILURE", found.ON_FAILURE, "django_batches.E006", "batch"),
        *_check_serializer(found.RQ_SERIALIZER),
    ]


def _check_cache(alias: str) -> Iterator[CheckMessage]:
    cache: dict[str, Any] | None = django_settings.CACHES.get(alias)
    if cache is None or not _is_django_redis(cache.get("BACKEND", "")):
        hint = (
            'CACHES = {"batches": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://localhost:6379/1"}}'
        )
        text = f'CACHES["{alias}"] is not a django-redis cache; {SETTING}["CACHE"] must name one.'
        yield Error(text, hint=hint, id="django_batches.E003")
        return
    if "ShardClient" in cache.get("OPTIONS", {}).get("CLIENT_CLASS", ""):
        text = (
            f'CACHES["{alias}"] distributes its keys over several servers (ShardClient), but a queue is on one server.'
        )
        hint = "Give the queues an alias of their own, with one LOCATION and the default CLIENT_CLASS."
        yield Error(text, hint=hint, id="django_batches.E005")
    else:
        try:
            client()
        except ImproperlyConfigured as error:
            yield Error(str(error), id="django_batches.E015")
    if alias == "default":
        text = 'The queues are in CACHES["default"]: cache.clear() of django-redis empties the whole database.'
        hint = f'Use another alias and database number for them, and name the alias in {SETTING}["CACHE"].'
        yield Warning(text, hint=hint, id="django_batches.W001")


def _is_django_redis(backend: str) -> bool:
    try:
        return issubclass(import_string(backend), RedisCache)
    except (ImportError, TypeError):
        return False


def _check_database() -> Iterator[CheckMessage]:
    alias = database.alias()
    configured: dict[str, Any] = django_settings.DATABASES.get(alias, {})
    if kind := database.unsupported():
        text = (
            f'The batches would be stored in "{alias}", which is {kind}: it lacks UPDATE ... RETURNING and unique '
            "constraints with a condition, which the app needs to count each job exactly once."
        )
        hint = "Store them in PostgreSQL or SQLite, with a database router if necessary."
        yield Error(text, hint=hint, id="django_batches.E014")
    if not configured.get("AUTOCOMMIT", True):
        text = f'DATABASES["{alias}"] has AUTOCOMMIT = False: nothing that the worker writes would be committed.'
        hint = "Remove AUTOCOMMIT, and begin your own transactions with transaction.atomic()."
        yield Error(text, hint=hint, id="django_batches.E016")
    is_sqlite = "sqlite3" in configured.get("ENGINE", "")
    if is_sqlite and configured.get("OPTIONS", {}).get("transaction_mode") != "IMMEDIATE":
        text = "SQLite begins each transaction as a reader, so concurrent writers can fail with 'database is locked'."
        hint = f'DATABASES["{alias}"]["OPTIONS"] = {{"transaction_mode": "IMMEDIATE", "timeout": 20}}'
        yield Warning(text, hint=hint, id="django_batches.W002")
    if alias != DEFAULT_DB_ALIAS:
        yield Warning(
            f'A database router stores the batches in "{alias}": transaction.atomic() on "{DEFAULT_DB_ALIAS}" neither '
            "delays their commit nor rolls them back.",
            hint=f'Open batches inside transaction.atomic(using="{alias}"), or store them with your own tables. '
            "Silence this check if you want this.",
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
        text = f'{SETTING}["RQ_SERIALIZER"] is {name!r}, but RQ finds no serializer there ({error}).'
        hint = "Write 'pickle', 'json', or the path that you pass to `rq worker --serializer`."
        yield Error(text, hint=hint, id="django_batches.E007")
