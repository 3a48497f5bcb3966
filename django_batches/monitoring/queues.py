"""Finds the queues that batches need. The queries only probe indexes: their cost does not grow with the jobs."""

from collections.abc import Sequence
from uuid import UUID

from django.db.models import QuerySet

from .. import database
from ..models import Batch, BatchJob
from ..states import IN_FLIGHT, JOB_ENDED, JobStatus
from ..transitions import frontier

MAX_ROWS = 1_000
"""How many jobs in RQ, and how many callbacks, are read to find their queues."""


def due_queues(batches: Sequence[Batch], among: Sequence[str] | None = None) -> set[tuple[UUID, str]]:
    """Returns (batch, queue) for each queue on which jobs of a batch wait for dispatch. `among` limits the queues."""
    keys = [batch.pk for batch in batches if batch.pending > batch.in_flight]
    queues = (frontier.queues() if among is None else among) if keys else []
    if not queues:
        return set()
    table, params = database.values({"batch": UUID, "queue": str}, [(key, queue) for key in keys for queue in queues])
    found = database.execute(
        f"SELECT v_batch, v_queue FROM {table} WHERE EXISTS (SELECT 1 FROM {database.JOB} WHERE status = 'created'"
        " AND batch_id = v_batch AND queue = v_queue)",
        params,
    )
    return {(database.as_uuid(batch), queue) for batch, queue in found}


def busy_queues(batches: Sequence[Batch]) -> set[tuple[UUID, str]]:
    """Returns (batch, queue) for each queue on which a batch has jobs in RQ, or callbacks that have not ended."""
    running = [batch for batch in batches if batch.in_flight]
    ended = [batch for batch in batches if batch.open_callbacks]
    callbacks = database.jobs().filter(callback_of__in=ended).exclude(status__in=[*JOB_ENDED, JobStatus.WAITING])
    return {
        *jobs_in_flight(running).values_list("batch_id", "queue")[:MAX_ROWS],
        *callbacks.order_by().values_list("callback_of_id", "queue")[:MAX_ROWS],
    }


def jobs_in_flight(batches: Sequence[Batch]) -> QuerySet[BatchJob]:
    """Returns the jobs of the batches that are in RQ. Do not order them: PostgreSQL would walk the whole batch."""
    return database.jobs().filter(batch__in=batches, status__in=IN_FLIGHT).order_by()
