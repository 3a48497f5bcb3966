"""What people do to jobs through RQ: its commands, its API, and the pages of django-rq."""

import random
from contextlib import suppress

from redis import Redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job

from django_batches.transport.client import Keys

MOST = 6
"""Jobs that are changed at a time."""


def meddle(redis: Redis, touched: list[str], rng: random.Random) -> None:
    """Deletes, cancels, requeues or stops some of the jobs that are in RQ now, or empties the queue.

    Raises `IndexError` where there is none.
    """
    queue = Queue("default", connection=redis)
    ids = [*queue.get_job_ids(), *running(redis)]
    how = rng.choice(["delete", "cancel", "requeue", "stop", "empty"])
    chosen = rng.sample(ids, min(MOST, len(ids))) if how != "empty" else queue.get_job_ids()
    if not chosen:
        raise IndexError("no job is in RQ now")
    touched += chosen  # noted first: what is done is seen at once
    if how == "empty":
        queue.empty()
    for rq_id in chosen if how != "empty" else ():
        with suppress(NoSuchJobError, InvalidJobOperation, TypeError, ValueError):  # it has ended meanwhile
            _change(queue, Job.fetch(rq_id, connection=redis), how)


def running(redis: Redis) -> list[str]:
    return [entry.decode().partition(":")[0] for entry in redis.zrange(Keys().started("default"), 0, -1)]


def _change(queue: Queue, job: Job, how: str) -> None:
    if how == "delete":
        job.delete()
    elif how == "cancel":
        job.cancel()
    elif how == "requeue":
        queue._enqueue_job(job)  # as django-rq's page, which asks for no status
    else:
        send_stop_job_command(queue.connection, job.id)
