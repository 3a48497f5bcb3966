"""The fixture `drain_batches`, which pytest finds if this app is installed."""

from collections.abc import Callable

import pytest

__all__ = ["drain_batches"]


@pytest.fixture
def drain_batches(db: None) -> Callable[..., int]:
    """`django_batches.testing.drain`, with the database of pytest-django."""
    # In a function: pytest imports this module before Django is set up.
    from .testing import drain  # noqa: PLC0415

    return drain
