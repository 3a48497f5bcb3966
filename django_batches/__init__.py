"""Batches of background jobs on RQ: run many jobs in parallel, and a callback when all of them have ended."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calls.options import exponential
    from .models import Batch
    from .models.context import acurrent_batch, acurrent_job, current_batch, current_job

__all__ = ["Batch", "acurrent_batch", "acurrent_job", "current_batch", "current_job", "exponential"]


def __getattr__(name: str) -> Any:
    # Import lazily (PEP 562): Django imports this package before it can import models.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"Batch": "models", "exponential": "calls.options"}.get(name, "models.context")
    return getattr(import_module(f"{__name__}.{home}"), name)
