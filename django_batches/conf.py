"""The setting `DJANGO_BATCHES`, a dict. Every key has a default."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2s
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

SETTING = "DJANGO_BATCHES"

OLDEST = timedelta(days=36_525)
"""The longest retention: a date much longer ago cannot be represented."""
RETENTION = {"succeeded": timedelta(days=7), "failed": timedelta(days=30), "cancelled": timedelta(days=7)}
"""How long ended batches are kept, by status."""
LARGEST_PAYLOAD = 64 * 1024 * 1024
"""The largest MAX_PAYLOAD in bytes. We do not write longer messages to Redis."""

SENSITIVE = (
    "password", "passwd", "passphrase", "pwd", "secret", "token", "api_key", "private_key", "access_key",
    "authorization", "credential", "cookie", "session_id",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    CACHE: str = "default"
    """Alias in `CACHES` of the django-redis cache on whose server the queues are. Use an alias and a database number
    for them alone, because `cache.clear()` of django-redis empties the whole database."""

    NAMESPACE: str = ""
    """Prefix of the keys in Redis: letters and digits. The default comes from the database's name, so that two projects
    or a test run can share a Redis."""

    ALLOWED_FUNCTIONS: tuple[str, ...] = ()
    """Dotted paths of modules or functions outside the installed apps that may run as jobs."""

    DEFAULT_TIMEOUT: int = 180
    """Seconds a job may run, unless the batch or `using` has another timeout."""

    MAX_PAYLOAD: int = 1024 * 1024
    """Maximum bytes of JSON of the arguments or the result of one job; at most 64 MiB."""

    ON_FAILURE: str = ""
    """Dotted path of a failure callback that every batch gets."""

    RQ_SERIALIZER: str = "pickle"
    """Serializer of the plain RQ workers (`rq worker --serializer`): "pickle", "json" or a path."""

    OPEN_TIMEOUT: int = 3600
    """Seconds without a new job after which an open batch counts as abandoned and is cancelled."""

    STATUS_PERMISSION: str = ""
    """Dotted path of `def may_see(request, batch) -> bool`, which permits the status view and `{% batch_progress %}`.
    A function of an installed app (or of ALLOWED_FUNCTIONS). By default no user may use them."""

    RETENTION: Mapping[str, timedelta | None] = field(default_factory=lambda: dict(RETENTION))
    """How long ended batches are kept, by status: seconds, a timedelta, or None for ever. Missing keys keep their
    default; `None` instead of the dict keeps everything."""

    METRICS_TOKEN: str = field(default="", repr=False)
    """The bearer token with which Prometheus reads the metrics. Without one, only users who may view batches in the
    admin read them."""

    SENSITIVE_KWARGS: tuple[str, ...] = SENSITIVE
    """Parts of the names of arguments whose values are masked, in any case and with any separators. Also applies to
    keys of dicts inside arguments, results and metadata. `()` masks nothing."""

    unknown: tuple[str, ...] = field(default=(), repr=False)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The validated settings. The system check `django_batches.E001` reports unknown keys.

    Raises `ImproperlyConfigured` with one line per wrong value.
    """
    given = getattr(django_settings, SETTING, {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f'{SETTING} is {given!r}: write a dict, as in {{"CACHE": "batches"}}.')
    known = {f.name for f in fields(Settings)} - {"unknown"}
    values: dict[str, Any] = {}
    wrong = []
    for key in known & given.keys():
        try:
            values[key] = _RULES[key](given[key]) if key in _RULES else given[key]
        except ValueError as error:
            shown = "wrong" if key == "METRICS_TOKEN" else repr(given[key])
            wrong.append(f'{SETTING}["{key}"] is {shown}: {error}.')
    if wrong:
        raise ImproperlyConfigured("\n".join(sorted(wrong)))
    values["NAMESPACE"] = values.get("NAMESPACE") or _default_namespace()
    return Settings(**values, unknown=tuple(str(key) for key in given if key not in known))


def suggestion(key: str) -> str:
    """A hint for a misspelt key, or the list of all keys."""
    known = [f.name for f in fields(Settings) if f.name != "unknown"]
    close = difflib.get_close_matches(key, known, n=1)
    return f'Did you mean "{close[0]}"?' if close else f"The keys are: {', '.join(known)}."


def _retention(given: Any) -> dict[str, timedelta | None]:
    if given is None:
        return dict.fromkeys(RETENTION)
    if not isinstance(given, Mapping):
        raise ValueError(f"write a dict with the keys {_keys()}")
    for key in given:
        if key not in RETENTION:
            raise ValueError(f"it has the key {key!r}, but the keys are {_keys()}")
    return {**RETENTION, **{key: _age(key, value) for key, value in given.items()}}


def _age(key: str, value: Any) -> timedelta | None:
    try:
        age = timedelta(seconds=value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    except (OverflowError, ValueError):
        age = value
    if age is not None and not (isinstance(age, timedelta) and timedelta(0) <= age <= OLDEST):
        raise ValueError(f"{key!r} is {value!r}; write seconds, a timedelta, or None to keep them; at most 100 years")
    return age


def _keys() -> str:
    return ", ".join(repr(key) for key in RETENTION)


def _default_namespace() -> str:
    database = django_settings.DATABASES.get("default", {})
    name = re.sub(r"[^A-Za-z0-9]", "", str(database.get("NAME", "")).rsplit("/", 1)[-1])[:20]
    # Two projects may both have a "db.sqlite3" or an "app".
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
"""Converts each value, or raises `ValueError` with the fix."""


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting in (SETTING, "DATABASES"):
        settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_batches.conf")
