"""Validates the setting `DJANGO_BATCHES`, a dict. Every key has a default."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2s
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

SETTING = "DJANGO_BATCHES"

OLDEST = timedelta(days=36_525)
"""The longest retention, 100 years. Python cannot represent a date that is much longer ago."""
RETENTION = {"succeeded": timedelta(days=7), "failed": timedelta(days=30), "cancelled": timedelta(days=7)}
"""How long ended batches are kept by default, by their status."""
LARGEST_PAYLOAD = 64 * 1024 * 1024
"""The largest MAX_PAYLOAD in bytes, so that no message in Redis is much larger."""

SENSITIVE = (
    "password", "passwd", "passphrase", "pwd", "secret", "token", "api_key", "private_key", "access_key",
    "authorization", "credential", "cookie", "session_id",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    CACHE: str = "default"
    """Alias in `CACHES` of a django-redis cache. Its Redis database stores the queues. Use no other cache with the same
    database number, because `cache.clear()` of django-redis empties the whole database."""

    NAMESPACE: str = ""
    """Prefix of the keys in Redis: letters and digits. The default is derived from the SQL database, so that projects
    and their test runs can share a Redis server."""

    ALLOWED_FUNCTIONS: tuple[str, ...] = ()
    """Dotted paths of functions outside the installed apps that may run as jobs, or of modules of such functions."""

    DEFAULT_TIMEOUT: int = 180
    """How many seconds each run of a job may take, unless the batch or `using` sets another timeout."""

    MAX_PAYLOAD: int = 1024 * 1024
    """Maximum size of the arguments and of the result of one job, in bytes of JSON; at most 64 MiB."""

    ON_FAILURE: str = ""
    """Dotted path of a function that every batch gets as an `on_failure` callback."""

    RQ_SERIALIZER: str = "pickle"
    """The serializer that you pass to `rq worker --serializer`: "pickle", "json" or a dotted path."""

    OPEN_TIMEOUT: int = 3600
    """After how many seconds without a new job an open batch counts as abandoned, and is cancelled."""

    STATUS_PERMISSION: str = ""
    """Dotted path of a function `may_see(request, batch) -> bool` in an installed app or in ALLOWED_FUNCTIONS. It
    permits the status view and `{% batch_progress %}`. By default, no user may use them."""

    RETENTION: Mapping[str, timedelta | None] = field(default_factory=lambda: dict(RETENTION))
    """How long ended batches are kept, by status: seconds, a timedelta, or None to keep them for ever. A status that is
    missing has its default. `None` instead of the dict keeps all batches for ever."""

    METRICS_TOKEN: str = field(default="", repr=False)
    """The bearer token with which Prometheus reads the metrics. Without a token, only users who may view batches in the
    admin can read them."""

    SENSITIVE_KWARGS: tuple[str, ...] = SENSITIVE
    """Words in the names of arguments whose values are masked. Case and separators do not matter. They also apply to
    the keys of dicts in arguments, results and metadata. `()` masks nothing."""

    unknown: tuple[str, ...] = field(default=(), repr=False)
    """Keys of the dict that do not exist."""


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Returns the validated settings. Raises `ImproperlyConfigured` with one line for each wrong value."""
    given = getattr(django_settings, SETTING, {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f'{SETTING} is {given!r}: write a dict, as in {{"CACHE": "batches"}}.')
    values: dict[str, Any] = {}
    wrong = []
    for key in _RULES.keys() & given.keys():
        try:
            values[key] = _RULES[key](given[key])
        except ValueError as error:
            shown = "wrong" if key == "METRICS_TOKEN" else repr(given[key])
            wrong.append(f'{SETTING}["{key}"] is {shown}: {error}.')
    if wrong:
        raise ImproperlyConfigured("\n".join(sorted(wrong)))
    values["NAMESPACE"] = values.get("NAMESPACE") or _default_namespace()
    return Settings(**values, unknown=tuple(str(key) for key in given if key not in _RULES))


def suggestion(key: str) -> str:
    """Returns a hint for a misspelt key, or the list of all keys."""
    close = difflib.get_close_matches(key, _RULES, n=1)
    return f'Did you mean "{close[0]}"?' if close else f"The keys are: {', '.join(_RULES)}."


def _retention(given: Any) -> dict[str, timedelta | None]:
    if given is None:
        return dict.fromkeys(RETENTION)
    if not isinstance(given, Mapping):
        raise ValueError(f"write a dict with the keys {', '.join(map(repr, RETENTION))}")
    for key in given:
        if key not in RETENTION:
            raise ValueError(f"the key {key!r} does not exist; the keys are {', '.join(map(repr, RETENTION))}")
    return {**RETENTION, **{key: _age(key, value) for key, value in given.items()}}


def _age(key: str, value: Any) -> timedelta | None:
    try:
        age = timedelta(seconds=value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    except (OverflowError, ValueError):
        age = value
    if age is not None and not (isinstance(age, timedelta) and timedelta(0) <= age <= OLDEST):
        raise ValueError(
            f"{key!r} is {value!r}; write seconds or a timedelta, at most 100 years, or None to keep them for ever"
        )
    return age


def _default_namespace() -> str:
    database = django_settings.DATABASES.get("default", {})
    name = re.sub(r"[^A-Za-z0-9]", "", str(database.get("NAME", "")).rsplit("/", 1)[-1])[:20]
    # The name alone is not enough: two projects may both use a "db.sqlite3" or an "app".
    place = "|".join(str(database.get(key, "")) for key in ("ENGINE", "HOST", "PORT", "NAME"))
    return f"{name}{blake2s(place.encode(), digest_size=3).hexdigest()}"


def _rule(fix: str, is_valid: Callable[[Any], Any], convert: Callable[[Any], Any] = lambda value: value) -> Any:
    def check(value: Any) -> Any:
        if not is_valid(value):
            raise ValueError(fix)
        return convert(value)

    return check


def _text(fix: str, pattern: str) -> Any:
    return _rule(fix, lambda value: isinstance(value, str) and re.fullmatch(pattern, value))


def _names(fix: str) -> Any:
    def is_valid(value: Any) -> bool:
        is_list = isinstance(value, list | tuple | set | frozenset)
        return is_list and all(isinstance(item, str) and re.search(r"[^\W_]", item) for item in value)

    return _rule(fix, is_valid, tuple)


def _seconds(value: Any) -> int:
    found = value.total_seconds() if isinstance(value, timedelta) else value
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not math.isfinite(found) or not 0 < found < 2**31:
        raise ValueError("write seconds as a number above 0, or a timedelta")
    return math.ceil(found)


_DOTTED = r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)+)?"
_PATH = _text("write the dotted path of a function, as in 'shop.tasks.notify', or \"\" for none", _DOTTED)

_RULES: dict[str, Callable[[Any], Any]] = {
    "CACHE": _text("write the name of an alias in CACHES, as in 'batches'", ".+"),
    "NAMESPACE": _text("use letters and digits only, at most 40", "[A-Za-z0-9]{0,40}"),
    "ALLOWED_FUNCTIONS": _names("write a list of dotted paths, as in ['reports.build']"),
    "DEFAULT_TIMEOUT": _seconds,
    "MAX_PAYLOAD": _rule(
        f"write a whole number of bytes from 1 to {LARGEST_PAYLOAD:,}; store larger data elsewhere",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_PAYLOAD,
    ),
    "ON_FAILURE": _PATH,
    "RQ_SERIALIZER": _text("write 'pickle', 'json', or the dotted path of a serializer", ".+"),
    "OPEN_TIMEOUT": _seconds,
    "STATUS_PERMISSION": _PATH,
    "RETENTION": _retention,
    "METRICS_TOKEN": _text('write a string of at least 16 characters, or "" for none', "|.{16,}"),
    "SENSITIVE_KWARGS": _names("write a list of names, as in ['password', 'iban'], or () to mask nothing"),
}
"""Each function validates and converts the value of a key, or raises `ValueError` with the fix."""


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting in (SETTING, "DATABASES"):
        settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_batches.conf")
