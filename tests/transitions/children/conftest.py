"""What all tests of child batches share."""

import pytest

from django_batches import Batch
from django_batches.transitions import repairing


@pytest.fixture(autouse=True)
def books_that_add_up():
    yield
    assert [repairing.drift(batch.pk) for batch in Batch.objects.all()] == [{}] * Batch.objects.count()
    assert not Batch.objects.filter(is_awaited=True, finished_at__isnull=False, parent__status="waiting").exists()


@pytest.fixture
def broken(tmp_path):
    """A file; as long as it exists, what looks at it fails."""
    path = tmp_path / "broken"
    path.touch()
    return path
