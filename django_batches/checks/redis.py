"""What is wrong with the Redis in use: said by `manage.py check --deploy`, which asks it once, with a short timeout."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from ..conf import settings
from ..transport.client import quick_client

TIMEOUT = 1.0
"""Seconds for each of connecting to Redis and its answer."""
OLDEST = (6, 2)
"""The first version with all commands that the scripts use."""


@dataclass(frozen=True)
class Server:
    """What a Redis says about itself."""

    info: dict[str, Any]
    save: str | None
    """Its save points, or None where it does not tell."""
    connection: dict[str, Any]
    """How we connect to it."""


def check_redis(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    try:
        alias = settings().CACHE
        redis = quick_client(TIMEOUT)
    except ImproperlyConfigured:
        return []  # the other checks say so
    try:
        server = Server(redis.info("all"), _save_points(redis), redis.connection_pool.connection_kwargs)
    except (RedisError, OSError) as error:
        return [_unreachable(alias, error)]
    finally:
        redis.connection_pool.disconnect()
    return [*_check_kind(server), *_check_eviction(server), *_check_persistence(server), *_check_access(alias, server)]


def _save_points(redis: Redis) -> str | None:
    try:
        found: Any = redis.config_get("save")
    except (NoPermissionError, ResponseError):
        return None  # a user without CONFIG, as ours should be, or a hosted server
    return str(found.get("save", ""))


def _unreachable(alias: str, error: Exception) -> CheckMessage:
    text = f'The Redis of CACHES["{alias}"] does not answer ({type(error).__name__}: {error}).'
    if isinstance(error, AuthenticationError | NoPermissionError):
        hint = f'Correct the user and the password in CACHES["{alias}"]["LOCATION"]: redis://user:password@host:6379/1'
        return Error(text, hint=hint, id="django_batches.E008")
    hint = f'Start it, or correct CACHES["{alias}"]["LOCATION"]. Batches can be opened meanwhile; no job starts.'
    return Warning(text, hint=hint, id="django_batches.W004")


def _check_kind(server: Server) -> Iterator[CheckMessage]:
    version = str(server.info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
        yield Error(
            f"This is Redis {version}; the queues need commands of 6.2.",
            hint="Use Redis 6.2 or newer, or Valkey.",
            id="django_batches.E009",
        )
    if server.info.get("cluster_enabled"):
        yield Error(
            "This is a node of a Redis Cluster, which would refuse scripts that touch several queues.",
            hint="Use a Redis without cluster mode for the queues; for a standby, use Sentinel.",
            id="django_batches.E010",
        )
    if server.info.get("role") in ("slave", "replica"):
        yield Error(
            "This Redis is a replica: it takes no jobs.",
            hint="Name the primary first in LOCATION; behind Sentinel, do not write ?is_master=0.",
            id="django_batches.E011",
        )


def _check_eviction(server: Server) -> Iterator[CheckMessage]:
    policy = server.info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Warning(
            f"This Redis has maxmemory-policy {policy}: short of memory it throws queues away. Their jobs are "
            "dispatched again from the rows, later and slower.",
            hint="Set maxmemory-policy noeviction, and give caches a Redis of their own.",
            id="django_batches.W005",
        )


def _check_persistence(server: Server) -> Iterator[CheckMessage]:
    if server.save == "" and not server.info.get("aof_enabled"):
        yield Warning(
            "This Redis keeps nothing on disk. No batch is lost by that, because the rows are the truth: after a "
            "restart what was queued is dispatched again. Ordinary RQ jobs are lost.",
            hint="Set appendonly yes, or silence this check if only batches use it.",
            id="django_batches.W006",
        )


def _check_access(alias: str, server: Server) -> Iterator[CheckMessage]:
    given = server.connection
    if given.get("password") or given.get("credential_provider") or _is_local(given):
        return
    yield Warning(
        f"This Redis is on another machine ({given.get('host', 'by Sentinel')}) and asks for no password: whoever "
        "reaches it runs code in your workers, through ordinary RQ jobs.",
        hint=f'Give it users with passwords (ACL SETUSER) and name one in CACHES["{alias}"]["LOCATION"]: '
        "rediss://user:password@host:6379/1",
        id="django_batches.W007",
    )


def _is_local(given: dict[str, Any]) -> bool:
    host = str(given.get("host", ""))
    if "path" in given or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
