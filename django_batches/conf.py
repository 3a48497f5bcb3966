"""The only reader of Django's settings: one dict, `DJANGO_BATCHES`, every key with a default."""

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
"""Of an age: what is much longer ago is no date any more."""
RETENTION = {"succeeded": timedelta(days=7), "failed": timedelta(days=30), "cancelled": timedelta(days=7)}
"""How long ended batches are kept, by status."""
SHORTEST_TOKEN = 16
LARGEST_PAYLOAD = 64 * 1024 * 1024
"""Bytes that MAX_PAYLOAD may be: a longer message in Redis is none of ours."""

SENSITIVE = (
    "password", "passwd", "passphrase", "pwd", "secret", "token", "api_key", "private_key", "access_key",
    "authorization", "credential", "cookie", "session_id",
)  # fmt: skip


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
    """Bytes of JSON that the arguments or the result of one job may have; at most 64 MiB."""

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
    SENSITIVE_KWARGS: tuple[str, ...] = SENSITIVE
    """Parts of the names of arguments whose values are shown as ••••, in any case and with any separators; also of the
    keys of dicts inside arguments, results and metadata. `()` shows everything."""

    unknown: tuple[str, ...] = field(default=(), repr=False)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings in force; unknown keys are reported by the system check `django_batches.E001`.

    Raises `ImproperlyConfigured` with everything that is wrong, a line for each.
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


def _token(token: Any) -> str:
    if not isinstance(token, str) or (token and len(token) < SHORTEST_TOKEN):
        raise ValueError(f'write a string of at least {SHORTEST_TOKEN} characters, or "" for none')
    return token


def _default_namespace() -> str:
    database = django_settings.DATABASES.get("default", {})
    name = re.sub(r"[^A-Za-z0-9]", "", str(database.get("NAME", "")).rsplit("/", 1)[-1])[:20]
    # Two projects may both have a "db.sqlite3" or an "app".
    place = "|".join(str(database.get(key, "")) for key in ("ENGINE", "HOST", "PORT", "NAME"))
    return f"{name}{blake2s(place.encode(), digest_size=3).hexdigest()}"


def _text(fix: str, pattern: str = ".*") -> Callable[[Any], str]:
    def judge(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(fix)
        return value

    return judge


def _names(fix: str) -> Callable[[Any], tuple[str, ...]]:
    def judge(value: Any) -> tuple[str, ...]:
        is_list = isinstance(value, list | tuple | set | frozenset)
        if not is_list or not all(isinstance(item, str) and re.search(r"[^\W_]", item) for item in value):
            raise ValueError(fix)
        return tuple(value)

    return judge


def _payload(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_PAYLOAD:
        raise ValueError(f"write a whole number of bytes from 1 to {LARGEST_PAYLOAD:,}; store larger data elsewhere")
    return value


def _seconds(value: Any) -> int:
    found = value.total_seconds() if isinstance(value, timedelta) else value
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not math.isfinite(found) or not 0 < found < 2**31:
        raise ValueError("write seconds as a number above 0, or a timedelta")
    return math.ceil(found)


_DOTTED = r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)+)?"
_PATH = _text("write the dotted path of a function, as in 'shop.tasks.tell', or \"\" for none", _DOTTED)

_RULES: dict[str, Callable[[Any], Any]] = {
    "CACHE": _text("write the name of an alias in CACHES, as in 'batches'", ".+"),
    "NAMESPACE": _text("use letters and digits only, at most 40", "[A-Za-z0-9]{0,40}"),
    "ALLOWED_FUNCTIONS": _names("write a list of dotted paths, as in ['reports.build']"),
    "DEFAULT_TIMEOUT": _seconds,
    "MAX_PAYLOAD": _payload,
    "ON_FAILURE": _PATH,
    "RQ_SERIALIZER": _text("write 'pickle', 'json', or the dotted path of a serializer", ".+"),
    "OPEN_TIMEOUT": _seconds,
    "STATUS_PERMISSION": _PATH,
    "RETENTION": _retention,
    "METRICS_TOKEN": _token,
    "SENSITIVE_KWARGS": _names("write a list of names, as in ['password', 'iban'], or () to mask nothing"),
}
"""What becomes of each given value; raises `ValueError` with the fix."""


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting in (SETTING, "DATABASES"):
        settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_batches.conf")
