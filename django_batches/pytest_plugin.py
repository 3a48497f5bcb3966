"""The fixture `drain_batches`. Its entry point makes it available wherever django_batches is installed."""

from collections.abc import Callable

import pytest

__all__ = ["drain_batches"]


@pytest.fixture
def drain_batches(db: None) -> Callable[..., int]:
    """Returns `django_batches.testing.drain`, with access to the database of pytest-django."""
    # Import this late: pytest imports the module before Django is set up.
    from .testing import drain  # noqa: PLC0415

    return drain
