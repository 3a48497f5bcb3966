"""Checks of the Redis server in use, for `manage.py check --deploy`. They query it once, with a short timeout."""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from ..conf import settings
from ..transport.client import quick_client

TIMEOUT = 1.0
"""Timeout in seconds, for connecting to Redis and for each reply."""
OLDEST = (6, 2)
"""The first Redis version that has all commands that the scripts use."""


def check_redis(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    try:
        alias = settings().CACHE
        redis = quick_client(TIMEOUT)
    except ImproperlyConfigured:
        return []  # the checks of the settings report it
    try:
        info, save = redis.info("all"), _save_points(redis)
    except (RedisError, OSError) as error:
        return [_unreachable(alias, error)]
    finally:
        redis.connection_pool.disconnect()
    given = redis.connection_pool.connection_kwargs
    return [*_check_kind(info), *_check_eviction(info), *_check_persistence(info, save), *_check_access(alias, given)]


def _save_points(redis: Redis) -> str | None:
    try:
        found: Any = redis.config_get("save")
    except (NoPermissionError, ResponseError):
        return None  # the user may not call CONFIG, as in our documentation, or the host disables it
    return str(found.get("save", ""))


def _unreachable(alias: str, error: Exception) -> CheckMessage:
    text = f'The Redis server of CACHES["{alias}"] does not respond ({type(error).__name__}: {error}).'
    if isinstance(error, AuthenticationError | NoPermissionError):
        hint = f'Correct the user and the password in CACHES["{alias}"]["LOCATION"]: redis://user:password@host:6379/1'
        return Error(text, hint=hint, id="django_batches.E008")
    hint = f'Start it, or correct CACHES["{alias}"]["LOCATION"]. Batches can be opened, but no job starts.'
    return Warning(text, hint=hint, id="django_batches.W004")


def _check_kind(info: dict[str, Any]) -> Iterator[CheckMessage]:
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
        hint = "Use Redis 6.2 or newer, or Valkey."
        yield Error(f"This is Redis {version}; the queues need Redis 6.2.", hint=hint, id="django_batches.E009")
    if info.get("cluster_enabled"):
        text = "This is a node of a Redis Cluster, which refuses scripts that use several queues."
        hint = "Use a Redis server without cluster mode for the queues; for a standby, use Sentinel."
        yield Error(text, hint=hint, id="django_batches.E010")
    if info.get("role") in ("slave", "replica"):
        hint = "Name the primary first in LOCATION; with Sentinel, do not write ?is_master=0."
        yield Error("This Redis server is a replica, which accepts no jobs.", hint=hint, id="django_batches.E011")


def _check_eviction(info: dict[str, Any]) -> Iterator[CheckMessage]:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Warning(
            f"This Redis server has maxmemory-policy {policy}: if memory is short, it deletes queues. Their jobs are "
            "dispatched again from the rows, later and more slowly.",
            hint="Set maxmemory-policy noeviction, and use another Redis server for caches.",
            id="django_batches.W005",
        )


def _check_persistence(info: dict[str, Any], save: str | None) -> Iterator[CheckMessage]:
    if save == "" and not info.get("aof_enabled"):
        yield Warning(
            "This Redis server does not persist anything. No batch is lost by a restart: its jobs are in the database "
            "and are dispatched again. Ordinary RQ jobs are lost.",
            hint="Set appendonly yes, or silence this check if only batches use it.",
            id="django_batches.W006",
        )


def _check_access(alias: str, given: dict[str, Any]) -> Iterator[CheckMessage]:
    if not (given.get("password") or given.get("credential_provider") or _is_local(given)):
        yield Warning(
            f"This Redis server is on another machine ({given.get('host', 'by Sentinel')}) and requires no password: "
            "anyone who can connect to it can run code in your workers, through ordinary RQ jobs.",
            hint=f'Add users with passwords (ACL SETUSER), and name one in CACHES["{alias}"]["LOCATION"]: '
            "rediss://user:password@host:6379/1",
            id="django_batches.W007",
        )


def _is_local(given: dict[str, Any]) -> bool:
    host = str(given.get("host", ""))
    try:
        return "path" in given or host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
