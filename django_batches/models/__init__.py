"""The models. Only `Batch` and `BatchJob` are public."""

from .. import database
from .aggregates import FailureGroup, TimeBucket
from .batch import Batch
from .job import BatchJob
from .lease import Lease

__all__ = ["Batch", "BatchJob"]

database.register_models(Batch, BatchJob, FailureGroup, Lease, TimeBucket)
