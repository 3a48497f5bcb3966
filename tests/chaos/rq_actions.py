"""Changes jobs through RQ: its commands, its API, and what django-rq does."""

import random
from contextlib import suppress

from redis import Redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job

from django_batches.transport.client import Keys

MOST = 6
"""Jobs to change at a time."""


def change_jobs(redis: Redis, touched: list[str], rng: random.Random) -> None:
    """Deletes, cancels, requeues or stops some of the jobs that are in RQ, or empties the queue.

    Raises `IndexError` if there are no jobs.
    """
    queue = Queue("default", connection=redis)
    ids = [*queue.get_job_ids(), *running(redis)]
    how = rng.choice(["delete", "cancel", "requeue", "stop", "empty"])
    chosen = rng.sample(ids, min(MOST, len(ids))) if how != "empty" else queue.get_job_ids()
    if not chosen:
        raise IndexError("no job is in RQ")
    touched += chosen  # first, because the effect is visible at once
    if how == "empty":
        queue.empty()
    for rq_id in chosen if how != "empty" else ():
        with suppress(NoSuchJobError, InvalidJobOperation, TypeError, ValueError):  # it has ended since
            _change(queue, Job.fetch(rq_id, connection=redis), how)


def running(redis: Redis) -> list[str]:
    return [entry.decode().partition(":")[0] for entry in redis.zrange(Keys().started("default"), 0, -1)]


def _change(queue: Queue, job: Job, how: str) -> None:
    if how == "delete":
        job.delete()
    elif how == "cancel":
        job.cancel()
    elif how == "requeue":
        queue._enqueue_job(job)  # as django-rq does, without checking the status
    else:
        send_stop_job_command(queue.connection, job.id)
