"""The fixture `drain_batches` for the tests of projects; pytest finds it by itself where this app is installed."""

from collections.abc import Callable

import pytest

__all__ = ["drain_batches"]


@pytest.fixture
def drain_batches(db: None) -> Callable[..., int]:
    """`django_batches.testing.drain`, with the database of pytest-django."""
    # In a function: pytest loads this plugin before Django is set up.
    from .testing import drain  # noqa: PLC0415

    return drain
