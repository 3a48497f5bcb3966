"""The models: batches, their jobs, and small rows beside them."""

from .. import database
from .aggregates import FailureGroup, TimeBucket
from .batch import Batch
from .job import BatchJob
from .lease import Lease

__all__ = ["Batch", "BatchJob", "FailureGroup", "Lease", "TimeBucket"]

database.register_models(Batch, BatchJob, FailureGroup, Lease, TimeBucket)
