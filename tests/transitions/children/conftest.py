"""What all tests of child batches share."""

import pytest

from django_batches import Batch
from django_batches.transitions import repairing


@pytest.fixture(autouse=True)
def check_counters():
    yield
    assert [repairing.drift(batch.pk) for batch in Batch.objects.all()] == [{}] * Batch.objects.count()
    assert not Batch.objects.filter(is_awaited=True, finished_at__isnull=False, parent__status="waiting").exists()


@pytest.fixture
def broken(tmp_path):
    """A file; the jobs that check it fail while it exists."""
    path = tmp_path / "broken"
    path.touch()
    return path
