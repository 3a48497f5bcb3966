"""New rows: a batch, its jobs, and the seal after which it may end."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone

from ..connection import Added, poke
from ..exceptions import BatchCancelled, BatchExists, BatchFinished
from ..states import IN_FLIGHT, BatchStatus, JobStatus
from . import counting, rows

if TYPE_CHECKING:
    from ..models import Batch


_GROWN = ("total", "pending", "succeeded", "failed", "cancelled", "in_flight", "status", "failure_round")


class NewJob(NamedTuple):
    """A job that was judged and is ready to be written."""

    id: UUID
    func: str
    arguments: str
    queue: str
    timeout: int
    max_attempts: int
    backoff: str
    no_retry: str
    created_at: datetime
    due_at: datetime | None = None
    """Not to be started before."""

    def row(self, batch_id: UUID, position: int) -> list[Any]:
        scheduled = [] if self.due_at is None else [JobStatus.SCHEDULED.value, self.due_at, 0]
        return [self.id, batch_id, None, "", position, 0, *self[1:-1], *scheduled]


def create(batch: "Batch", *, inherits_queue: bool = False) -> None:
    """Writes the row of a new, open batch; with `inherits_queue` a child takes the queue of its parent's batch.

    Raises `BatchExists` where one with its key has not ended, and `BatchFinished` or `BatchCancelled` for a child of a
    run that was given up or of a job whose batch is cancelled.
    """
    if batch.parent_id and batch.parent_dispatch:
        queue = _queue_of_parent(batch.parent_id, batch.parent_dispatch)
        batch.queue = queue if inherits_queue else batch.queue
        batch.is_awaited = True
    if rows.has_a_clock():
        batch.grown_at = Now()
    if batch.deadline is not None:
        batch.deadline_at = rows.deadline(batch.deadline)
    try:
        with rows.atomic():
            rows.batches().bulk_create([batch])
            if batch.deadline is not None:
                batch.deadline_at = rows.batches().values_list("deadline_at", flat=True).get(pk=batch.pk)
    except IntegrityError:
        if not batch.key:
            raise
        raise BatchExists(f"A batch with the key {batch.key!r} has not ended yet.") from None
    batch.grown_at = batch.created_at
    batch._state.adding = False


def add(
    batch_id: UUID, new: Sequence[NewJob], registered_callbacks: str | None = None, *, seal: bool = False
) -> dict[str, Any]:
    """Adds at least one job to a batch that has not ended, and seals it with them; what the batch's row says then.

    Counters and rows are one transaction: rows that nobody counted, or a count without rows, would hang the batch.
    Raises `BatchFinished` or `BatchCancelled`; then nothing is written.
    """
    with rows.atomic():
        batch = _grow(batch_id, len(new), registered_callbacks, seal)
        first = batch["total"] - len(new)
        has_failed = seal and batch["failure_round"] is not None
        if has_failed:
            counting.tell_missed(rows.lock_batches([batch_id])[batch_id], timezone.now())
        rows.insert_jobs([job.row(batch_id, position) for position, job in enumerate(new, start=first)])
        poke_on_commit(added=None if has_failed else Added(batch_id, first, sorted({job.queue for job in new})))
    return batch


def seal(batch_id: UUID, registered_callbacks: str | None = None) -> bool:
    """Nobody adds from outside any more: the batch may end. False where it was sealed or has ended before."""
    now = timezone.now()
    with rows.atomic():
        batch = rows.lock_batches([batch_id]).get(batch_id)
        if batch is None or batch.sealed_at or batch.finished_at or batch.cancelled_at:
            return False
        batch.sealed_at, batch.status = now, BatchStatus.RUNNING
        batch.registered_callbacks = registered_callbacks or batch.registered_callbacks
        rows.batches().filter(pk=batch_id).update(
            sealed_at=now, status=batch.status, registered_callbacks=batch.registered_callbacks
        )
        counting.tell_missed(batch, now)
        counting.write([counting.Tally(batch)], now)
        poke_on_commit()
    return True


def discard(batch_id: UUID) -> bool:
    """Removes an open batch to which nothing was ever added; False where something was, or somebody cancelled it."""
    empty = rows.batches().filter(pk=batch_id, total=0, sealed_at=None, cancelled_at=None)
    return bool(empty.delete()[0])


def poke_on_commit(*held: Any, added: Added | None = None) -> None:
    """Wakes the coordinator once what this transaction wrote can be seen; see `connection.poke`."""
    # A lambda, because Django logs the name of a robust hook that raises, and a partial has none.
    transaction.on_commit(lambda: poke(*held, added=added), using=rows.alias(), robust=True)


def _queue_of_parent(job_id: UUID, dispatch: int) -> str:
    """The queue of the batch of the job that opens a child.

    Raises where this run of the job does not count any more: nobody would wait for the child. The row of the job is not
    locked: user code may hold its transaction open for long, and the book-keeper would wait. What slips through is
    found by `children.cancel_orphans`.
    """
    parents = rows.jobs().filter(pk=job_id, dispatch=dispatch, status__in=IN_FLIGHT)
    found = parents.values_list("batch__queue", "callback_of__queue", "batch__cancelled_at").first()
    if found is None:
        raise BatchFinished(
            f"This run of job {job_id} does not count any more, because its worker was taken for lost: no batch is "
            "opened for it."
        )
    if found[2]:
        raise BatchCancelled(f"The batch of job {job_id} was cancelled; no child of it can be opened.")
    return str(found[0] or found[1])


def _grow(batch_id: UUID, count: int, registered_callbacks: str | None, seal: bool) -> dict[str, Any]:
    now = rows.parameter(timezone.now())
    grown, times = ("clock_timestamp()", []) if rows.has_a_clock() else ("%s", [now])
    sealing, sealed_at = (", status = 'running', sealed_at = COALESCE(sealed_at, %s)", [now]) if seal else ("", [])
    found = rows.execute(
        f"UPDATE {rows.BATCH} SET total = total + %s, pending = pending + %s, grown_at = {grown},"
        f" registered_callbacks = COALESCE(%s, registered_callbacks){sealing}"
        " WHERE id = %s AND finished_at IS NULL AND cancelled_at IS NULL"
        f" RETURNING {', '.join(_GROWN)}",
        [count, count, *times, registered_callbacks, *sealed_at, rows.parameter(batch_id)],
    )
    if found:
        return dict(zip(_GROWN, found[0], strict=True))
    batch = rows.batches().filter(pk=batch_id).only("cancelled_at", "reason").first()
    if batch is None:
        raise BatchFinished(f"Batch {batch_id} does not exist any more.")
    if batch.cancelled_at:
        raise BatchCancelled(f"Batch {batch_id} was cancelled; nothing can be added. {batch.reason}".strip())
    raise BatchFinished(f"Batch {batch_id} has ended; nothing can be added: open another one.")
