"""Results are streamed: a reader holds a few thousand of them in memory, never all."""

import tracemalloc

import pytest

from django_batches import Batch
from django_batches.models import BatchJob

from .. import tasks

pytestmark = pytest.mark.django_db(transaction=True)

JOBS = 10_000
SIZE = 2_000
"""Bytes of one result: all of them are 20 MB."""


def test_results_are_read_in_constant_memory():
    with Batch.open() as batch:
        batch.map(tasks.ok, range(JOBS))
    BatchJob.objects.filter(batch=batch).update(result_text=f'"{"x" * SIZE}"')
    tracemalloc.start()
    try:
        assert sum(len(result) for result in batch.results()) == JOBS * SIZE
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < JOBS * SIZE / 2
