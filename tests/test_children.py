"""Child batches: jobs that open batches, wait for them and take their results."""

import pytest

from django_batches import Batch
from django_batches.testing import drain
from django_batches.transitions import repairing

from . import tasks

pytestmark = pytest.mark.django_db


def test_a_job_that_returns_a_batch_has_its_result():
    with Batch.open("sort") as batch:
        batch.enqueue(tasks.sort, [5, 3, 9, 1, 7])
    drain()
    batch.refresh_from_db()
    assert batch.status == "succeeded"
    assert list(batch.results()) == [[1, 3, 5, 7, 9]]
    assert {b.status for b in Batch.objects.all()} == {"succeeded"}
    assert [repairing.drift(b.pk) for b in Batch.objects.all()] == [{}] * 5
