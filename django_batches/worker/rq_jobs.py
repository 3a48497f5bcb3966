"""Runs ordinary RQ jobs, which share the queues with batch jobs but belong to no batch, with RQ's own worker."""

import logging
import signal
import time

from django.db import connections
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Worker
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job

from ..conf import settings
from ..transport.scripts import Taken
from .processes import die_with
from .slots import RunningJob, SlotTable

logger = logging.getLogger("django_batches")

STOP = signal.SIGUSR1
"""The signal that makes an executor stop the RQ job that it runs."""


def run(taken: Taken, name: str, redis: Redis, slots: SlotTable, slot: int) -> bool:
    """Runs a job in a forked process, with RQ's retries, dependents and callbacks.

    Returns False if the job is gone or cannot be read. Use `redis` for nothing else: RQ's worker raises its timeouts.
    """
    connections.close_all()  # before the fork: two processes must not share a connection
    serializer = settings().RQ_SERIALIZER
    queue = Queue(taken.queue, connection=redis, serializer=serializer)
    try:
        job = Job.fetch(taken.rq_id, connection=redis, serializer=serializer)
    except NoSuchJobError:
        redis.lrem(queue.intermediate_queue_key, 1, taken.rq_id)
        return False
    except Exception as error:
        # Leave the job in the intermediate queue, which RQ's maintenance cleans.
        logger.warning("RQ job %s cannot be read: %s", taken.rq_id, error)
        return False
    worker = _ForkingWorker([queue], name=name, connection=redis, serializer=serializer)

    def stop(signum: int, frame: object) -> None:
        # horse_pid is 0 after RQ's forked process has ended. Killing process group 0 would kill the supervisor too.
        if worker.horse_pid:
            worker._stopped_job_id = job.id
            worker.kill_horse()

    signal.signal(STOP, stop)
    slots.write(slot, RunningJob(taken.rq_id, taken.queue, time.monotonic(), 0.0))
    worker.execute_job(job, queue)
    return True


class _ForkingWorker(Worker):
    """RQ's worker for one job. The process that it forks (the horse) dies with the executor."""

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Ignores Redis errors, after which RQ would kill the horse in the middle of its job."""
        try:
            super().maintain_heartbeats(job, execution)
        except (RedisError, OSError) as error:
            logger.warning("RQ job %s cannot send its heartbeat (%s); the job continues.", job.id, error)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        assert self.pid is not None
        die_with(self.pid)
        super().main_work_horse(job, queue)
