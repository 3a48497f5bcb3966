"""Runs a `batchworker` during a block, as a process manager would run it beside the web server."""

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django_redis import get_redis_connection
from redis.exceptions import RedisError
from rq import Worker

from .processes import Process, running

START_SECONDS = 30


@contextmanager
def batchworker(*queues: str, workers: int, **options: Any) -> Iterator[Process]:
    """Runs `manage.py batchworker` during the block, which starts as soon as all executors are up.

    `options` go to `subprocess.Popen`. Raises `CommandError` if the worker does not start.
    """
    name = f"example-{secrets.token_hex(4)}"
    with manage("batchworker", *queues, "--workers", workers, "--name", name, **options) as process:
        wait_for_executors(name, workers, process)
        yield process


def manage(*arguments: object, **options: Any) -> AbstractContextManager[Process]:
    """Runs a management command of this project during the block."""
    return running([sys.executable, settings.BASE_DIR.parent / "manage.py", *arguments], **options)


def check_redis() -> None:
    """Raises `CommandError` if Redis does not answer."""
    try:
        get_redis_connection("batches").ping()
    except (RedisError, OSError) as error:
        raise CommandError(
            f"Redis does not answer ({error}). Start Redis, or use `make demo`, which starts one."
        ) from error


def wait_for_executors(name: str, count: int, process: Process) -> None:
    """Waits until RQ lists the given number of workers of this batchworker."""
    redis = get_redis_connection("batches")
    deadline = time.monotonic() + START_SECONDS
    while sum(f":{name}." in key for key in Worker.all_keys(connection=redis)) < count:
        check_alive(process)
        if time.monotonic() > deadline:
            raise CommandError(f"The batchworker did not start within {START_SECONDS} seconds.")
        time.sleep(0.05)


def check_alive(*processes: subprocess.Popen[bytes]) -> None:
    """Raises `CommandError` if one of the processes has ended."""
    for process in processes:
        if (code := process.poll()) is not None:
            raise CommandError(f"{' '.join(map(str, process.args[1:]))} has ended with exit code {code}.")  # type: ignore[index]
