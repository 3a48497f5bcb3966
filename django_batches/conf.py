"""The only reader of Django's settings: one dict, `DJANGO_BATCHES`, every key with a default."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2s
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

SETTING = "DJANGO_BATCHES"

RETENTION = {"succeeded": timedelta(days=7), "failed": timedelta(days=30), "cancelled": timedelta(days=7)}
"""How long ended batches are kept, by status."""
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Settings:
    CACHE: str = "default"
    """Alias in `CACHES` of the django-redis cache whose server carries the queues. Its own alias and database number,
    because `cache.clear()` of django-redis empties the whole database."""

    NAMESPACE: str = ""
    """Prefix of the keys in Redis, letters and digits. Default: made of the database's name, so that two projects
    (or a test run) on one Redis do not read each other's outcomes."""

    ALLOWED_FUNCTIONS: tuple[str, ...] = ()
    """Modules or functions outside the installed apps that may run as jobs, by dotted path."""

    DEFAULT_TIMEOUT: int = 180
    """Seconds a job may run, where neither the batch nor `using` says otherwise."""

    MAX_PAYLOAD: int = 1024 * 1024
    """Bytes of JSON that the arguments or the result of one job may have."""

    ON_FAILURE: str = ""
    """Dotted path of a failure callback that every batch gets."""

    RQ_SERIALIZER: str = "pickle"
    """Serializer of the plain RQ workers of this deployment (`rq worker --serializer`): "pickle", "json" or a path."""

    OPEN_TIMEOUT: int = 3600
    """Seconds without a new job after which an open batch counts as abandoned by its creator and is cancelled."""

    STATUS_PERMISSION: str = ""
    """Dotted path of `def may_see(request, batch) -> bool`: for whom the status view and `{% batch_progress %}` move.
    A function of an installed app (or of ALLOWED_FUNCTIONS). Default: nobody."""

    RETENTION: Mapping[str, timedelta | None] = field(default_factory=lambda: dict(RETENTION))
    """How long ended batches are kept, by status: seconds, a timedelta, or None to keep them for ever. Keys left out
    keep their default; `None` in place of the dict keeps everything."""

    METRICS_TOKEN: str = field(default="", repr=False)
    """What Prometheus must send as `Authorization: Bearer …` to read the metrics. Without one, only users of the admin
    who may view batches read them."""

    unknown: tuple[str, ...] = field(default=(), repr=False)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings in force; unknown keys are reported by the system check `django_batches.E001`."""
    given: dict[str, Any] = dict(getattr(django_settings, SETTING, {}))
    known = {f.name for f in fields(Settings)} - {"unknown"}
    values = {key: value for key, value in given.items() if key in known}
    if "ALLOWED_FUNCTIONS" in values:
        values["ALLOWED_FUNCTIONS"] = tuple(values["ALLOWED_FUNCTIONS"])
    namespace = values.get("NAMESPACE") or _default_namespace()
    if not re.fullmatch(r"[A-Za-z0-9]{1,40}", namespace):
        raise ImproperlyConfigured(f'{SETTING}["NAMESPACE"] is {namespace!r}: use letters and digits only, at most 40.')
    values["NAMESPACE"] = namespace
    values["RETENTION"] = _retention(values.get("RETENTION", {}))
    _judge_token(values.get("METRICS_TOKEN", ""))
    return Settings(**values, unknown=tuple(key for key in given if key not in known))


def suggestion(key: str) -> str:
    """A hint for a misspelt key, or the list of all keys."""
    known = [f.name for f in fields(Settings) if f.name != "unknown"]
    close = difflib.get_close_matches(key, known, n=1)
    return f'Did you mean "{close[0]}"?' if close else f"The keys are: {', '.join(known)}."


def _retention(given: Any) -> dict[str, timedelta | None]:
    if given is None:
        return dict.fromkeys(RETENTION)
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f'{SETTING}["RETENTION"] is {given!r}: write a dict with the keys {_keys()}.')
    for key in given:
        if key not in RETENTION:
            raise ImproperlyConfigured(f'{SETTING}["RETENTION"] has the key {key!r}: the keys are {_keys()}.')
    return {**RETENTION, **{key: _age(key, value) for key, value in given.items()}}


def _age(key: str, value: Any) -> timedelta | None:
    try:
        age = timedelta(seconds=value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    except (OverflowError, ValueError):
        age = value
    if age is not None and not (isinstance(age, timedelta) and age >= timedelta(0)):
        raise ImproperlyConfigured(
            f'{SETTING}["RETENTION"]["{key}"] is {value!r}: write seconds, a timedelta, or None to keep them.'
        )
    return age


def _keys() -> str:
    return ", ".join(repr(key) for key in RETENTION)


def _judge_token(token: Any) -> None:
    if not isinstance(token, str) or (token and len(token) < SHORTEST_TOKEN):
        raise ImproperlyConfigured(
            f'{SETTING}["METRICS_TOKEN"] must be a string of at least {SHORTEST_TOKEN} characters, or "" for none.'
        )


def _default_namespace() -> str:
    database = django_settings.DATABASES.get("default", {})
    name = re.sub(r"[^A-Za-z0-9]", "", str(database.get("NAME", "")).rsplit("/", 1)[-1])[:20]
    # Two projects may both have a "db.sqlite3" or an "app".
    place = "|".join(str(database.get(key, "")) for key in ("ENGINE", "HOST", "PORT", "NAME"))
    return f"{name}{blake2s(place.encode(), digest_size=3).hexdigest()}"


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting in (SETTING, "DATABASES"):
        settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_batches.conf")
