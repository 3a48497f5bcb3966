"""Batches of background jobs on RQ: run many jobs in parallel, and a callback when all of them are done."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calls.options import exponential
    from .models import Batch
    from .models.context import acurrent_batch, acurrent_job, current_batch, current_job

__all__ = ["Batch", "acurrent_batch", "acurrent_job", "current_batch", "current_job", "exponential"]

_HOMES = {
    "Batch": "models",
    "acurrent_batch": "models.context",
    "acurrent_job": "models.context",
    "current_batch": "models.context",
    "current_job": "models.context",
    "exponential": "calls.options",
}


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): Django imports this package before models can be imported.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
