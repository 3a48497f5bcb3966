"""Batches with children: by jobs that are run, or as the claimed job would open them."""

from contextlib import contextmanager

from django_batches import Batch
from django_batches.models.context import Running, running
from django_batches.testing import drain
from django_batches.transitions import applying, children, retrying
from django_batches.transport.outcomes import Kind

from ... import tasks
from ...road import claim, outcome_of


def open_batch(func, *args, **options):
    with Batch.open("root", **options) as batch:
        batch.on_finish(tasks.ok_callback)
        batch.enqueue(func, *args)
    return batch


def run(func, *args, **options):
    batch = open_batch(func, *args, **options)
    drain(raise_failures=False)
    batch.refresh_from_db()
    return batch


@contextmanager
def running_as(job):
    """In the block this is the run of a claimed job."""
    run = Running(job.id, job.batch_id, job.dispatch, bool(job.event))
    token = running.set(run)
    try:
        yield run
    finally:
        running.reset(token)


def open_child(job, count=1, **options):
    """As the claimed job would do it: a sealed child batch."""
    with running_as(job), Batch.open("child", **options) as child:
        child.map(tasks.ok, range(count))
    return child


def returned(job, child=None):
    """The outcome of a claimed job that has opened a child, which it may return."""
    return outcome_of(job, result=None if child else "1", has_children=True, returned=child.pk if child else None)


def settle():
    """What the coordinator does after outcomes."""
    children.cancel_orphans()
    children.cancel_children()
    retrying.continue_retries()
    while children.notify_parents():
        pass


def child():
    return Batch.objects.get(description="child")


def failed_below(**options):
    """A batch whose job failed because a job of its child did; and that child."""
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job, **options)
    applying.record([returned(job)])
    applying.record([outcome_of(below, Kind.FAILED) for below in claim(opened)])
    settle()
    batch.refresh_from_db()
    assert batch.status == "failed"
    return batch, opened
