"""RQ jobs that are not ours, on the same queues: run by RQ's own worker, as always."""

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
from ..transport.client import client
from ..transport.scripts import Taken
from .processes import die_with
from .slots import RunningJob, SlotTable

logger = logging.getLogger("django_batches")

STOP = signal.SIGUSR1
"""Asks an executor to stop the ordinary RQ job that it runs."""


class OrdinaryJobs:
    """Runs them for one executor: with a fork, RQ's retries, dependents and callbacks."""

    def __init__(self, name: str, board: SlotTable, slot: int) -> None:
        self._name = name
        self._board = board
        self._slot = slot
        self._redis: Redis | None = None

    def run(self, taken: Taken) -> bool:
        """Runs the job that was taken; False where there is none to run."""
        connections.close_all()  # before the fork: two processes on one connection mix their answers
        redis = self._redis = self._redis or client()  # RQ raises the time-outs of a client it is given
        queue = Queue(taken.queue, connection=redis, serializer=settings().RQ_SERIALIZER)
        try:
            job = Job.fetch(taken.rq_id, connection=redis, serializer=settings().RQ_SERIALIZER)
        except NoSuchJobError:
            redis.lrem(queue.intermediate_queue_key, 1, taken.rq_id)
            return False
        except Exception as error:
            # It stays where RQ's own upkeep looks for jobs that never started.
            logger.warning("The RQ job %s cannot be read: %s", taken.rq_id, error)
            return False
        worker = _Forking([queue], name=self._name, connection=redis, serializer=settings().RQ_SERIALIZER)

        def stop(signum: int, frame: object) -> None:
            # Without a horse it would kill the group of 0, which is that of the supervisor: RQ sets it to 0 at its end.
            if worker.horse_pid:
                worker._stopped_job_id = job.id
                worker.kill_horse()

        signal.signal(STOP, stop)
        self._board.write(self._slot, RunningJob(taken.rq_id, taken.queue, time.monotonic(), 0.0))
        worker.execute_job(job, queue)
        return True


class _Forking(Worker):
    """RQ's worker for one ordinary job, whose horse does not outlive this process."""

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Goes on while Redis is away: to end here would kill the horse in the middle of its work."""
        try:
            super().maintain_heartbeats(job, execution)
        except (RedisError, OSError) as error:
            logger.warning("The RQ job %s cannot tell Redis that it runs (%s); it goes on.", job.id, error)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        assert self.pid is not None
        die_with(self.pid)
        super().main_work_horse(job, queue)
