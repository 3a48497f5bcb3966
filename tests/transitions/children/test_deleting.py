"""Deletions in a tree: they include all batches below, and are refused while one of these runs."""

import pytest

from django_batches import Batch
from django_batches.exceptions import BatchError
from django_batches.models import BatchJob
from django_batches.testing import drain
from django_batches.transitions import applying
from django_batches.transport.outcomes import Kind

from ... import tasks
from ...road import claim, outcome_of
from .trees import child, open_batch, open_child, returned, run, settle

pytestmark = pytest.mark.django_db


def test_a_job_with_a_deleted_child_is_run_again():
    batch = run(tasks.child_with_callback, "success", "tests.tasks.boom_callback")
    child().delete()
    batch.retry_failed()
    assert batch.jobs.get().status == "created"


def test_deleting_a_batch_deletes_the_tree_below_it(ledger):
    batch = run(tasks.descend, ledger.path, 3, 2)
    other = run(tasks.return_child)
    batch.delete()
    assert set(Batch.objects.values_list("description", flat=True)) == {"root", "child"}
    assert BatchJob.objects.count() == other.total + other.callbacks.count() + 3


def test_an_awaited_child_cannot_be_deleted():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    kept, ended = open_child(job), open_child(job)
    applying.record([returned(job)])
    applying.record([outcome_of(below) for below in claim(ended)])
    with pytest.raises(BatchError, match="depends on its outcome"):
        Batch.objects.get(pk=ended.pk).delete()
    kept.cancel()
    settle()


def test_a_batch_cannot_be_deleted_while_one_below_it_runs():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    orphan = open_child(job, 2)
    claim(orphan)
    applying.record([outcome_of(job, Kind.FAILED)])
    settle()
    drain()
    batch.refresh_from_db()
    assert batch.status == "failed"
    with pytest.raises(BatchError, match="below batch"):
        batch.delete()
    assert batch.jobs.count() == 1


def test_an_ended_child_cannot_be_deleted_while_its_job_runs():
    batch = open_batch(tasks.ok)
    (job,) = claim(batch)
    opened = open_child(job)
    applying.record([outcome_of(below) for below in claim(opened)])
    with pytest.raises(BatchError, match="depends on its outcome"):
        Batch.objects.get(pk=opened.pk).delete()
    applying.record([returned(job, opened)])
    settle()
    assert batch.jobs.get().result == [1]
