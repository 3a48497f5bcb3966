"""Executors as RQ workers in Redis, so that `rq info` and the pages of django-rq show them, and commands reach them."""

import json
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from redis import Redis
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.version import VERSION
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY

from ..transport.client import Keys, known_queues
from ..transport.scripts import stamp

TTL = 90
"""Seconds after which a worker of a lost host is gone from RQ's lists."""


class Registration:
    """RQ's record of the executors of one supervisor."""

    def __init__(self, redis: Redis, queues: Sequence[str]) -> None:
        self._redis = redis
        self._queues = queues
        self._keys = Keys()
        self._births: dict[str, str] = {}
        self._pubsub: Any = None

    def renew(self, executors: Iterable[tuple[str, int]]) -> None:
        """Writes the records of (name, process id) anew, and listens for their commands."""
        queues = self._queues or known_queues(self._redis)
        pipeline = self._redis.pipeline(transaction=False)
        for name, pid in executors:
            key = self._keys.worker(name)
            pipeline.hset(key, mapping=self._record(name, pid, queues))
            pipeline.hsetnx(key, "state", "idle")
            pipeline.expire(key, TTL)
            pipeline.sadd(REDIS_WORKER_KEYS, key)
            for queue in queues:
                pipeline.sadd(WORKERS_BY_QUEUE_KEY % queue, key)
            self._listen(name)
        pipeline.execute()

    def remove(self, name: str) -> None:
        """Takes a worker that has ended from RQ's lists."""
        key = self._keys.worker(name)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.srem(REDIS_WORKER_KEYS, key)
        for queue in self._queues or known_queues(self._redis):
            pipeline.srem(WORKERS_BY_QUEUE_KEY % queue, key)
        pipeline.delete(key, f"{key}:executions")
        pipeline.execute()
        self._births.pop(name, None)
        if self._pubsub is not None:
            self._pubsub.unsubscribe(PUBSUB_CHANNEL_TEMPLATE % name)

    def commands(self) -> list[tuple[str, dict[str, Any]]]:
        """The commands that came since the last call: (worker, payload)."""
        found = []
        prefix = PUBSUB_CHANNEL_TEMPLATE % ""
        while self._pubsub is not None and (message := self._pubsub.get_message(ignore_subscribe_messages=True)):
            if message["type"] == "message" and (payload := _payload(message["data"])):
                found.append((message["channel"].decode().removeprefix(prefix), payload))
        return found

    def forget_connection(self) -> None:
        """After an error: the next renewal subscribes again."""
        if self._pubsub is not None:
            self._pubsub.close()
        self._pubsub = None

    def _listen(self, name: str) -> None:
        if self._pubsub is None:
            self._pubsub = self._redis.pubsub()
        channel = (PUBSUB_CHANNEL_TEMPLATE % name).encode()
        if channel not in self._pubsub.channels:
            self._pubsub.subscribe(channel)

    def _record(self, name: str, pid: int, queues: Sequence[str]) -> dict[Any, Any]:
        return {
            "birth": self._births.setdefault(name, stamp()),
            "last_heartbeat": stamp(),
            "queues": ",".join(queues),
            "pid": pid,
            "hostname": socket.gethostname(),
            "ip_address": "unknown",
            "version": VERSION,
            "python_version": sys.version,
            "supervisor": os.getpid(),
        }


def _payload(data: bytes) -> dict[str, Any] | None:
    """The command, or None for text that is none: anybody may publish."""
    try:
        payload = json.loads(data)
    except ValueError:
        return None
    return payload if isinstance(payload, dict) else None
