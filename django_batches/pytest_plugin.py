"""The fixture `drain_batches` for the tests of projects; pytest finds it by itself where this app is installed."""

from collections.abc import Callable

import pytest

from .testing import drain


@pytest.fixture
def drain_batches(db: None) -> Callable[..., int]:
    """`django_batches.testing.drain`, with the database of pytest-django."""
    return drain
