"""The cost of children for the coordinator: statements per transaction, not per child."""

import pytest

from django_batches import Batch
from django_batches.models.context import Running, running
from django_batches.transitions import applying, children

from ... import tasks
from ...road import claim, outcome_of, statements


def as_run_of(job, callback):
    """Opens a sealed child as the claimed job would; returns the outcome of that job."""
    token = running.set(Running(job.id, job.batch_id, job.dispatch))
    try:
        with Batch.open("child") as child:
            if callback:
                child.on_success(tasks.ok_callback)
            child.enqueue(tasks.ok)
    finally:
        running.reset(token)
    return outcome_of(job, has_children=True, returned=child.pk)


def statements_to_tell(parents, callback):
    """The number of statements that notify that many waiting jobs."""
    with Batch.open("root") as batch:
        batch.map(tasks.ok, range(parents))
    applying.record([as_run_of(job, callback) for job in claim()])
    applying.record([outcome_of(job) for job in claim()])
    applying.record([outcome_of(job) for job in claim(callbacks=True)])
    with statements() as made:
        assert children.notify_parents() == parents
    batch.refresh_from_db()
    assert batch.succeeded == parents
    return len(made)


@pytest.mark.django_db
@pytest.mark.parametrize("callback", [False, True], ids=["a list of results", "the result of a callback"])
def test_notifying_many_parents_takes_as_many_statements_as_notifying_few(callback):
    assert statements_to_tell(20, callback) == statements_to_tell(2, callback)
