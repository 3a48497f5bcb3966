"""New rows: a batch, its jobs, and the seal after which it may end."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils import timezone

from .. import database
from ..database import inserting
from ..exceptions import BatchCancelled, BatchExists, BatchFinished
from ..states import IN_FLIGHT, BatchStatus, JobStatus
from ..transport.client import Added, wake_coordinator
from . import finishing

if TYPE_CHECKING:
    from ..models import Batch


FEW = 100
"""Jobs that are written with their count in one statement; from there on COPY is worth its round trips."""

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

    def row(self, batch_id: UUID, position: int, *, in_full: bool = False) -> list[Any]:
        """Columns of `inserting.NEW_JOB`, or of `inserting.NEW_JOB_IN_STATUS` where it is scheduled or asked for."""
        status = JobStatus.CREATED if self.due_at is None else JobStatus.SCHEDULED
        further = [status.value, self.due_at, 0] if in_full or self.due_at else []
        return [self.id, batch_id, None, "", position, 0, *self[1:-1], *further]


def create(batch: "Batch", *, inherits_queue: bool = False) -> None:
    """Writes the row of a new, open batch; with `inherits_queue` a child takes the queue of its parent's batch.

    Raises `BatchExists` where one with its key has not ended, and `BatchFinished` or `BatchCancelled` for a child of a
    run that was given up or of a job whose batch is cancelled.
    """
    batch.is_awaited = bool(batch.parent_id and batch.parent_dispatch)
    inherits_queue = inherits_queue and batch.is_awaited
    computed = {"queue": ("owner.queue", []) if inherits_queue else ("%s", [batch.queue])} | _times(batch)
    source, params = _of_parent(batch) if batch.is_awaited else ("WHERE true", [])
    try:
        with database.single_statement():
            made = inserting.batch(batch, computed, source, params)
    except IntegrityError:
        if not batch.key:
            raise
        raise BatchExists(
            f"A batch with the key {batch.key!r} has not ended yet: Batch.objects.get(key={batch.key!r}, "
            "finished_at=None) is that one. Wait for it, cancel it, or catch BatchExists."
        ) from None
    if made is None:
        raise _parent_is_over(batch)
    for name, value in made.items():
        setattr(batch, name, value)
    batch._state.adding, batch._state.db = False, database.alias()


def add(
    batch_id: UUID, new: Sequence[NewJob], registered_callbacks: str | None = None, *, seal: bool = False
) -> dict[str, Any]:
    """Adds at least one job to a batch that has not ended, and seals it with them; what the batch's row says then.

    Counters and rows are one transaction: rows that nobody counted, or a count without rows, would hang the batch.
    Raises `BatchFinished` or `BatchCancelled`; then nothing is written.
    """
    if batch := _add_few(batch_id, new, registered_callbacks, seal):
        return batch
    with database.atomic():
        batch = _grow(batch_id, len(new), registered_callbacks, seal)
        first = batch["total"] - len(new)
        has_failed = seal and batch["failure_round"] is not None
        if has_failed:
            finishing.schedule_missed_failure_callbacks(database.lock_batches([batch_id])[batch_id], timezone.now())
        inserting.jobs([job.row(batch_id, position) for position, job in enumerate(new, start=first)])
        wake_on_commit(added=None if has_failed else _added(batch_id, first, new))
    return batch


def seal(batch_id: UUID, registered_callbacks: str | None = None) -> bool:
    """Nobody adds from outside any more: the batch may end. False where it was sealed or has ended before.

    Raises `BatchCancelled` or `BatchFinished` where callbacks of the block can then not be registered any more.
    """
    now = timezone.now()
    with database.atomic():
        batch = database.lock_batches([batch_id]).get(batch_id)
        if batch is None or batch.sealed_at or batch.finished_at or batch.cancelled_at:
            if batch and registered_callbacks not in (None, batch.registered_callbacks):
                if batch.cancelled_at:
                    raise _cancelled(batch, "its callbacks are not registered")
                raise BatchFinished(f"Batch {batch_id} was sealed by somebody else; its callbacks are not registered.")
            return False
        batch.sealed_at, batch.status = now, BatchStatus.RUNNING
        batch.registered_callbacks = registered_callbacks or batch.registered_callbacks
        database.batches().filter(pk=batch_id).update(
            sealed_at=now, status=batch.status, registered_callbacks=batch.registered_callbacks
        )
        finishing.schedule_missed_failure_callbacks(batch, now)
        finishing.write([finishing.Tally(batch)], now)
        wake_on_commit()
    return True


def discard(batch_id: UUID) -> bool:
    """Removes an open batch to which nothing was ever added; False where something was, or somebody cancelled it."""
    empty = database.batches().filter(pk=batch_id, total=0, sealed_at=None, cancelled_at=None)
    return bool(empty.delete()[0])


def wake_on_commit(*held: Any, added: Added | None = None) -> None:
    """Wakes the coordinator once what this transaction wrote can be seen; see `connection.poke`."""
    # A lambda, because Django logs the name of a robust hook that raises, and a partial has none.
    transaction.on_commit(lambda: wake_coordinator(*held, added=added), using=database.alias(), robust=True)


def _added(batch_id: UUID, first: int, new: Sequence[NewJob]) -> Added:
    return Added(batch_id, first, sorted({job.queue for job in new}))


def _times(batch: "Batch") -> dict[str, tuple[str, list[Any]]]:
    """The moments of a new batch that the database computes; see `rows.has_clock`."""
    if database.has_clock():
        late = "clock_timestamp() + %s * interval '1 second'"
        return {"grown_at": ("clock_timestamp()", []), "deadline_at": (late, [batch.deadline])}
    if batch.deadline is not None:
        batch.deadline_at = database.deadline(batch.deadline)
    return {}


def _of_parent(batch: "Batch") -> tuple[str, list[Any]]:
    """The batch of the job that opens a child, while this run of the job counts: else nobody would wait for the child.

    The row of the job is not locked: user code may hold its transaction open for long, and the coordinator would wait.
    What slips through is found by `children.cancel_orphans`.
    """
    statuses = ", ".join(f"'{status.value}'" for status in IN_FLIGHT)
    return (
        f"FROM {database.JOB} parent JOIN {database.BATCH} owner"
        " ON owner.id = COALESCE(parent.batch_id, parent.callback_of_id)"
        f" WHERE parent.id = %s AND parent.dispatch = %s AND parent.status IN ({statuses})"
        " AND (parent.batch_id IS NULL OR owner.cancelled_at IS NULL)",
        [database.parameter(batch.parent_id), batch.parent_dispatch],
    )


def _parent_is_over(batch: "Batch") -> BatchFinished:
    """Why no child can be opened."""
    job = database.jobs().filter(pk__in=[batch.parent_id], status__in=IN_FLIGHT).select_related("batch").first()
    if job and job.dispatch == batch.parent_dispatch and job.batch and job.batch.cancelled_at:
        return BatchCancelled(f"The batch of job {job.pk} was cancelled; no child of it can be opened.")
    return BatchFinished(
        f"This run of job {batch.parent_id} does not count any more, because its worker was taken for lost: no batch "
        "is opened for it."
    )


def _add_few(
    batch_id: UUID, new: Sequence[NewJob], registered_callbacks: str | None, seal: bool
) -> dict[str, Any] | None:
    """What `add` does, in one statement; None with nothing written where it takes more, or where it is refused."""
    if len(new) > FEW or database.connection().vendor != "postgresql":
        return None
    update, params = _growing(batch_id, len(new), registered_callbacks, seal)
    table, columns = database.values(
        inserting.NEW_JOB_IN_STATUS, [job.row(batch_id, place, in_full=True) for place, job in enumerate(new)]
    )
    picks = [f"v_{name}" if name != "position" else "total - %s + v_position" for name in inserting.NEW_JOB_IN_STATUS]
    with database.single_statement():
        found = database.execute(
            # Not with a failure that was told before the seal: callbacks that came after it are told then.
            f"WITH grown AS ({update}{' AND failure_round IS NULL' if seal else ''} RETURNING {', '.join(_GROWN)}),"
            f" added AS (INSERT INTO {database.JOB} ({', '.join(inserting.NEW_JOB_IN_STATUS)})"
            f" SELECT {', '.join(picks)} FROM grown, {table})"
            " SELECT * FROM grown",
            [*params, len(new), *columns],
        )
        if not found:
            return None
        batch = dict(zip(_GROWN, found[0], strict=True))
        # In here: where somebody has turned autocommit off, Django refuses it outside of `atomic`.
        wake_on_commit(added=_added(batch_id, batch["total"] - len(new), new))
    return batch


def _growing(batch_id: UUID, count: int, registered_callbacks: str | None, seal: bool) -> tuple[str, list[Any]]:
    now = database.parameter(timezone.now())
    grown, times = ("clock_timestamp()", []) if database.has_clock() else ("%s", [now])
    sealing, sealed_at = (", status = 'running', sealed_at = COALESCE(sealed_at, %s)", [now]) if seal else ("", [])
    return (
        f"UPDATE {database.BATCH} SET total = total + %s, pending = pending + %s, grown_at = {grown},"
        f" registered_callbacks = COALESCE(%s, registered_callbacks){sealing}"
        " WHERE id = %s AND finished_at IS NULL AND cancelled_at IS NULL",
        [count, count, *times, registered_callbacks, *sealed_at, database.parameter(batch_id)],
    )


def _grow(batch_id: UUID, count: int, registered_callbacks: str | None, seal: bool) -> dict[str, Any]:
    update, params = _growing(batch_id, count, registered_callbacks, seal)
    found = database.execute(f"{update} RETURNING {', '.join(_GROWN)}", params)
    if found:
        return dict(zip(_GROWN, found[0], strict=True))
    batch = database.batches().filter(pk=batch_id).only("cancelled_at", "reason").first()
    if batch is None:
        raise BatchFinished(f"Batch {batch_id} does not exist any more.")
    if batch.cancelled_at:
        raise _cancelled(batch, "nothing can be added")
    raise BatchFinished(f"Batch {batch_id} has ended; nothing can be added: open another one.")


def _cancelled(batch: "Batch", refused: str) -> BatchCancelled:
    return BatchCancelled(f"Batch {batch.pk} was cancelled; {refused}. {batch.reason}".strip(), batch_id=batch.pk)
