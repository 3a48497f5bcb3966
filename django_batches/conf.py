"""The only reader of Django's settings: one dict, `DJANGO_BATCHES`, every key with a default."""

import difflib
import re
from dataclasses import dataclass, field, fields
from functools import lru_cache
from hashlib import blake2s
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

SETTING = "DJANGO_BATCHES"


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
    return Settings(**values, unknown=tuple(key for key in given if key not in known))


def suggestion(key: str) -> str:
    """A hint for a misspelt key, or the list of all keys."""
    known = [f.name for f in fields(Settings) if f.name != "unknown"]
    close = difflib.get_close_matches(key, known, n=1)
    return f'Did you mean "{close[0]}"?' if close else f"The keys are: {', '.join(known)}."


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
