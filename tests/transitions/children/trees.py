"""Builds batches with children, by running jobs or as a claimed job would open them."""

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
    """Runs the block as a claimed job."""
    run = Running(job.id, job.batch_id, job.dispatch, bool(job.event))
    token = running.set(run)
    try:
        yield run
    finally:
        running.reset(token)


def open_child(job, count=1, **options):
    """Opens a sealed child batch, as the claimed job would."""
    with running_as(job), Batch.open("child", **options) as child:
        child.map(tasks.ok, range(count))
    return child


def returned(job, child=None):
    """The outcome of a claimed job that has opened a child and may return it."""
    return outcome_of(job, result=None if child else "1", has_children=True, returned=child.pk if child else None)


def settle():
    """The steps of the coordinator after outcomes."""
    children.cancel_orphans()
    children.cancel_children()
    retrying.continue_retries()
    while children.notify_parents():
        pass


def child():
    return Batch.objects.get(description="child")


def failed_below(**options):
    """A batch whose job failed because of its child, and that child."""
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job, **options)
    applying.record([returned(job)])
    applying.record([outcome_of(below, Kind.FAILED) for below in claim(opened)])
    settle()
    batch.refresh_from_db()
    assert batch.status == "failed"
    return batch, opened
