"""The road from a row to RQ and back, driven by hand in one process: real database, real Redis, no processes."""

import os
import threading
from contextlib import contextmanager

from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_batches.coordinator.dispatch import Dispatcher
from django_batches.coordinator.lease import Lease
from django_batches.coordinator.reconcile import Reconciler
from django_batches.coordinator.record import Recorder
from django_batches.models import BatchJob
from django_batches.transitions import claiming, frontier
from django_batches.transport.client import client
from django_batches.transport.outcomes import Kind, Outcome, fingerprint
from django_batches.worker.executor import Executor
from django_batches.worker.options import Options
from django_batches.worker.slots import SlotTable

LIMIT = 10_000


class Road:
    def __init__(self, name="road"):
        self.redis = client()
        self.lease = Lease(name)
        assert self.lease.acquire()
        self.recorder = Recorder(self.redis, self.lease)
        self.dispatcher = Dispatcher(self.redis, self.lease)
        self.reconciler = Reconciler(self.redis, self.lease, self.recorder)
        self.slots = SlotTable(4)
        self.executor = self.new_executor()

    def new_executor(self, slot=0, name="executor", queues=()):
        return Executor(Options(queues=queues), self.slots, slot, name, os.getppid())

    def dispatch(self):
        """Claims and pushes what is due."""
        claiming.promote_due(self.lease)
        self.dispatcher.look_everywhere()
        return self.dispatcher.dispatch_callbacks() + self.dispatcher.dispatch_jobs()

    def work(self, executor=None):
        """Runs what is in the queues; returns how many jobs."""
        executor = executor or self.executor
        count = 0
        while executor.step() in ("job", "rq"):
            count += 1
            assert count < LIMIT
        return count

    def record(self):
        """Applies what is in the stream; returns how many outcomes were read."""
        self.recorder.rewind()
        entries, _ = self.recorder.read(1)
        if entries:
            self.recorder.record(entries)
        return len(entries)

    def run(self):
        """Everything until nothing is due any more; returns how many jobs ran."""
        total = 0
        while True:
            dispatched, worked = self.dispatch(), self.work()
            recorded = 0
            while read := self.record():
                recorded += read
            total += worked
            if not (dispatched or worked or recorded):
                return total

    def work_with_replacement(self):
        """As `run`; replaces an executor that must be replaced, as the supervisor does."""
        for index in range(1, 10):
            self.run()
            if not BatchJob.objects.filter(status__in=["created", "queued", "running"]).exists():
                return
            self.executor = self.new_executor(name=f"executor {index}")

    def close(self):
        self.executor._redis.connection_pool.disconnect()
        self.redis.connection_pool.disconnect()


def claim(batch=None, *, callbacks=False):
    """Puts rows in flight as a dispatch does, without a push: all due jobs, or all due callbacks."""
    if callbacks:
        claimed = claiming.claim_callbacks(LIMIT, timezone.now)
    else:
        claimed = [job for queue in frontier.queues() for job in claiming.claim_jobs(queue, LIMIT, timezone.now)]
    return [job for job in claimed if batch is None or job.batch_id == batch.pk]


def outcome_of(job, kind=Kind.SUCCEEDED, **fields):
    """The outcome of a claimed row, or of a BatchJob that is in flight."""
    if isinstance(job, BatchJob):
        is_job, batch_id = job.callback_of_id is None, job.owner_id
    else:
        is_job, batch_id = not job.event, job.batch_id
    if kind == Kind.SUCCEEDED:
        fields.setdefault("result", "1")
        fields.setdefault("finished_at", timezone.now())
    else:
        fields.setdefault("error_type", "ValueError")
        fields.setdefault("error", "ValueError: no")
        fields.setdefault("fingerprint", fingerprint("ValueError", "here"))
    return Outcome(kind, job.id, job.dispatch, batch_id, is_job, **fields)


@contextmanager
def open_elsewhere(act):
    """In the block a transaction of another connection is open, which has begun with `act()`."""
    begun, over = threading.Event(), threading.Event()

    def hold():
        try:
            with transaction.atomic():
                act()
                begun.set()
                over.wait(30)
        finally:
            connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert begun.wait(10)
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def statements():
    """The statements made in the block, without the beginnings and ends of transactions."""
    made = []
    with CaptureQueriesContext(connection) as captured:
        yield made
    made += [q["sql"] for q in captured.captured_queries if not q["sql"].startswith(("BEGIN", "COMMIT", "SAVEPOINT"))]
