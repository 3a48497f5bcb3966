"""Renews leases, reaps executors, registers them as RQ workers, and receives RQ's commands to them."""

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from redis.exceptions import RedisError
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.version import VERSION
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY

from ..coordinator.timer import Every
from ..transport.client import Keys, known_queues, quick_client
from ..transport.scripts import Scripts, stamp
from .children import Children, KillReason

logger = logging.getLogger("django_batches")

RENEW = 10.0
"""Seconds between two renewals of the leases of running jobs, which expire after 45 seconds."""
REGISTERED = 90
"""Seconds after which RQ no longer lists an executor that is not registered again, for example on a lost host."""
PATIENCE = 5.0
"""Seconds after which a shutdown no longer waits for Redis, or for a process that does not exit."""


class RedisLink:
    """The supervisor's connection to Redis. It survives outages."""

    def __init__(self, queues: Sequence[str], children: Children) -> None:
        # Short timeouts: the supervisor must notice dead children during an outage.
        self._redis = quick_client(2.0, socket_connect_timeout=1.0)
        self._scripts = Scripts(self._redis)
        self._pubsub = self._redis.pubsub()
        self._queues = queues
        self._children = children
        self.renewal = Every(RENEW)
        self._unreachable_since: float | None = None
        self.to_reap: list[tuple[str, KillReason]] = []
        """The names of dead executors that are not reaped in Redis yet, each with its kill reason."""

    def exchange(self, *, is_shutting_down: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        """Reaps executors, renews leases if due, and yields RQ's commands as tuples (executor's name, payload)."""
        try:
            self._reap()
            yield from self._commands()
            if self.renewal.is_due():
                self._scripts.renew((child.name, job.rq_id, job.queue) for child, job in self._children.running_jobs())
                self._register()
            self._unreachable_since = None
        except (RedisError, OSError) as error:
            logger.debug("The supervisor cannot reach Redis: %s", error)
            self._unreachable_since = self._unreachable_since or time.monotonic()
            if is_shutting_down and time.monotonic() > self._unreachable_since + PATIENCE:
                self.to_reap.clear()  # the leases of their jobs expire, and the reconciler finds the jobs
            self._pubsub.close()
            self._redis.connection_pool.disconnect()  # reconnect: the server may have become a replica
            self.renewal.soon(1.0)

    def _reap(self) -> None:
        while self.to_reap:
            name, reason = self.to_reap[0]
            self._scripts.reap(name, reason.kind, reason.error, reason.stopped)
            if self._pubsub.subscribed:
                self._pubsub.unsubscribe(PUBSUB_CHANNEL_TEMPLATE % name)
            del self.to_reap[0]

    def _commands(self) -> Iterator[tuple[str, dict[str, Any]]]:
        while message := self._pubsub.get_message(ignore_subscribe_messages=True):
            try:
                payload = json.loads(message["data"])
            except ValueError:
                continue  # anyone may publish anything on this channel
            if isinstance(payload, dict):
                yield message["channel"].decode().removeprefix(PUBSUB_CHANNEL_TEMPLATE % ""), payload

    def _register(self) -> None:
        """Registers the executors as RQ workers, for `rq info` and django-rq, and subscribes to their commands."""
        queues = self._queues or known_queues(self._redis)
        record: dict[Any, Any] = {
            "last_heartbeat": stamp(),
            "queues": ",".join(queues),
            "hostname": socket.gethostname(),
            "ip_address": "unknown",
            "version": VERSION,
            "python_version": sys.version,
            "supervisor": os.getpid(),
        }
        pipeline = self._redis.pipeline(transaction=False)
        for child in self._children.executors():
            key = Keys().worker(child.name)
            pipeline.hset(key, mapping=record | {"pid": child.pid})
            pipeline.hsetnx(key, "birth", stamp())
            pipeline.hsetnx(key, "state", "idle")
            pipeline.expire(key, REGISTERED)
            for workers in (REDIS_WORKER_KEYS, *(WORKERS_BY_QUEUE_KEY % queue for queue in queues)):
                pipeline.sadd(workers, key)
            channel = PUBSUB_CHANNEL_TEMPLATE % child.name
            if channel.encode() not in self._pubsub.channels:
                self._pubsub.subscribe(channel)
        pipeline.execute()
