"""The jobs of the naive way, and the RQ callbacks that count them."""

import random
import time

from django.db import connection
from redis import Redis
from rq import Queue, get_current_job

from . import ledger


def work(batch: int, seconds: float, failing: int) -> None:
    run = get_current_job().id
    ledger.write("start", run, 0, str(batch), "")
    time.sleep(seconds)
    if random.random() * 100 < failing:
        ledger.write("raise", run, 0, str(batch), "")
        raise ValueError
    ledger.write("finish", run, 0, str(batch), "")


def done(batch: int) -> None:
    ledger.write("start", get_current_job().id, 0, str(batch), "done")


def succeeded(job, redis, *_):
    count(job, redis, "succeeded")


def failed(job, redis, *_):
    if not job.retries_left:
        count(job, redis, "failed")


def count(job, redis: Redis, column: str) -> None:
    batch = job.args[0]
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE naive SET pending = pending - 1, {column} = {column} + 1 WHERE id = %s RETURNING pending", [batch]
        )
        if cursor.fetchone() == (0,):
            Queue(connection=redis).enqueue(done, batch)
