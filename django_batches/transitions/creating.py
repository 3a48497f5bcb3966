"""Creates batches, adds jobs to them, and seals them. A batch that is not cancelled can end only after it is sealed."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils import timezone

from .. import database
from ..database import inserting
from ..database.base import Sql
from ..database.inserting import NewJob
from ..exceptions import BatchCancelled, BatchExists, BatchFinished
from ..states import IN_FLIGHT, BatchStatus
from ..transport.client import Added, wake_coordinator
from . import batch_status

FEW = 100
"""Up to this many jobs are inserted and counted by one statement. For ten, it is 1.1 times as fast as using COPY."""

_COUNTERS = ("total", "pending", "succeeded", "failed", "cancelled", "in_flight", "status", "failure_round")


def create(batch: "database.Batch", *, inherits_queue: bool = False) -> None:
    """Inserts a new, open batch. With `inherits_queue`, a child gets the queue of its parent's batch.

    Raises `BatchExists` if a batch with the same key has not ended. For a child, raises `BatchCancelled` if the batch
    of its parent job is cancelled, and `BatchFinished` if the parent's run no longer counts.
    """
    batch.is_awaited = bool(batch.parent_id and batch.parent_dispatch)
    if batch.deadline is not None:
        batch.deadline_at = timezone.now() + timedelta(seconds=batch.deadline)
    queue: Sql = ("owner.queue", []) if inherits_queue and batch.is_awaited else ("%s", [batch.queue])
    computed = {"queue": queue} | database.dialect().times_of_new_batch(batch.deadline)
    source, params = _of_parent(batch) if batch.is_awaited else ("WHERE true", [])
    try:
        with database.single_statement():
            inserted = inserting.batch(batch, computed, source, params)
    except IntegrityError:
        if not batch.key:
            raise
        raise BatchExists(
            f"A batch with the key {batch.key!r} has not ended yet: Batch.objects.get(key={batch.key!r}, "
            "finished_at=None) returns it. Wait for it, cancel it, or catch BatchExists."
        ) from None
    if inserted is None:
        raise _parent_is_over(batch)
    for name, value in inserted.items():
        setattr(batch, name, value)
    batch._state.adding, batch._state.db = False, database.alias()


def add(
    batch_id: UUID, new: Sequence[NewJob], registered_callbacks: str | None = None, *, seal: bool = False
) -> dict[str, Any]:
    """Adds one or more jobs to a batch that has not ended; `seal` also seals it. Returns the batch's counters.

    Changes counters and rows in one transaction. A batch that counts missing rows would never end, and a batch that
    does not count all rows would end too early. Raises `BatchFinished` or `BatchCancelled` before it writes anything.
    """
    if batch := _add_few(batch_id, new, registered_callbacks, seal):
        return batch
    with database.atomic():
        batch = _grow(batch_id, len(new), registered_callbacks, seal)
        first = batch["total"] - len(new)
        has_failed = seal and batch["failure_round"] is not None
        if has_failed:
            batch_status.schedule_missed_failure_callbacks(database.lock_batches([batch_id])[batch_id], timezone.now())
        inserting.jobs([job.at(position) for position, job in enumerate(new, start=first)])
        wake_on_commit(added=None if has_failed else _added(batch_id, first, new))
    return batch


def seal(batch_id: UUID, registered_callbacks: str | None = None) -> bool:
    """Seals a batch, which may then end. Returns False if it is already sealed, cancelled, ended or deleted.

    Raises `BatchCancelled` or `BatchFinished` if such a batch cannot register the given callbacks any more.
    """
    now = timezone.now()
    with database.atomic():
        batch = database.lock_batch(batch_id)
        if batch is None:
            return False
        if batch.sealed_at or batch.finished_at or batch.cancelled_at:
            if registered_callbacks not in (None, batch.registered_callbacks):
                if batch.cancelled_at:
                    raise _cancelled(batch, "its callbacks are not registered")
                raise BatchFinished(f"Batch {batch_id} was sealed by other code; its callbacks are not registered.")
            return False
        callbacks = registered_callbacks or batch.registered_callbacks
        database.write_fields(batch, sealed_at=now, status=BatchStatus.RUNNING, registered_callbacks=callbacks)
        batch_status.schedule_missed_failure_callbacks(batch, now)
        batch_status.update_batches([batch_status.Tally(batch)], now)
        wake_on_commit()
    return True


def discard(batch_id: UUID) -> bool:
    """Deletes an open batch without jobs. Returns False if it has jobs, or was sealed or cancelled."""
    empty = database.batches().filter(pk=batch_id, total=0, sealed_at=None, cancelled_at=None)
    return bool(empty.delete()[0])


def wake_on_commit(*on_hold: Any, added: Added | None = None) -> None:
    """Wakes the coordinator after the commit of this transaction; see `wake_coordinator`."""
    # Use a lambda: Django logs the name of a robust hook that raises, and a partial has no name.
    transaction.on_commit(lambda: wake_coordinator(*on_hold, added=added), using=database.alias(), robust=True)


def _added(batch_id: UUID, first: int, new: Sequence[NewJob]) -> Added:
    return Added(batch_id, first, sorted({job.queue for job in new}))


def _of_parent(batch: "database.Batch") -> Sql:
    """Returns the SQL source of the parent job and its batch. It has no row if this run of the parent no longer counts.

    Does not lock the job: user code may keep its transaction open for long, and the coordinator would wait for it.
    If the parent's run is given up at the same moment, `children.cancel_orphans` finds the child later.
    """
    statuses = ", ".join(f"'{status.value}'" for status in IN_FLIGHT)
    return (
        f"FROM {database.JOB} parent JOIN {database.BATCH} owner"
        " ON owner.id = COALESCE(parent.batch_id, parent.callback_of_id)"
        f" WHERE parent.id = %s AND parent.dispatch = %s AND parent.status IN ({statuses})"
        " AND (parent.batch_id IS NULL OR owner.cancelled_at IS NULL)",
        [database.parameter(batch.parent_id), batch.parent_dispatch],
    )


def _parent_is_over(batch: "database.Batch") -> BatchFinished:
    job = database.jobs().filter(pk__in=[batch.parent_id], status__in=IN_FLIGHT).select_related("batch").first()
    if job and job.dispatch == batch.parent_dispatch and job.batch and job.batch.cancelled_at:
        return BatchCancelled(f"The batch of job {job.pk} was cancelled, so the job cannot open a child batch.")
    return BatchFinished(
        f"This run of job {batch.parent_id} does not count any more, because its worker was considered lost, so the "
        "run cannot open a child batch."
    )


def _add_few(
    batch_id: UUID, new: Sequence[NewJob], registered_callbacks: str | None, seal: bool
) -> dict[str, Any] | None:
    """Does the work of `add` in one statement. If this is not possible, writes nothing and returns None."""
    if len(new) > FEW or not database.dialect().can_write_in_with:
        return None
    update, params = _growing(batch_id, len(new), registered_callbacks, seal)
    table, rows = database.values(NewJob, [job.at(place) for place, job in enumerate(new)])
    values = [f"v_{name}" if name != "position" else "total - %s + v_position" for name in NewJob._fields]
    with database.single_statement():
        found = database.execute(
            # After a failure, let `add` seal the batch: it schedules failure callbacks that were registered late.
            f"WITH grown AS ({update}{' AND failure_round IS NULL' if seal else ''} RETURNING {', '.join(_COUNTERS)}),"
            f" added AS (INSERT INTO {database.JOB} ({', '.join(NewJob._fields)})"
            f" SELECT {', '.join(values)} FROM grown, {table})"
            " SELECT * FROM grown",
            [*params, len(new), *rows],
        )
        if not found:
            return None
        batch = dict(zip(_COUNTERS, found[0], strict=True))
        # Stay inside `single_statement`: if autocommit is off, Django refuses `on_commit` outside `atomic`.
        wake_on_commit(added=_added(batch_id, batch["total"] - len(new), new))
    return batch


def _growing(batch_id: UUID, count: int, registered_callbacks: str | None, seal: bool) -> Sql:
    now, times = database.dialect().now_sql()
    sealed_at = [database.parameter(timezone.now())] if seal else []
    sealing = ", status = 'running', sealed_at = COALESCE(sealed_at, %s)" if seal else ""
    return (
        f"UPDATE {database.BATCH} SET total = total + %s, pending = pending + %s, grown_at = {now},"
        f" registered_callbacks = COALESCE(%s, registered_callbacks){sealing}"
        " WHERE id = %s AND finished_at IS NULL AND cancelled_at IS NULL",
        [count, count, *times, registered_callbacks, *sealed_at, database.parameter(batch_id)],
    )


def _grow(batch_id: UUID, count: int, registered_callbacks: str | None, seal: bool) -> dict[str, Any]:
    update, params = _growing(batch_id, count, registered_callbacks, seal)
    found = database.execute(f"{update} RETURNING {', '.join(_COUNTERS)}", params)
    if found:
        return dict(zip(_COUNTERS, found[0], strict=True))
    batch = database.batches().filter(pk=batch_id).only("cancelled_at", "reason").first()
    if batch is None:
        raise BatchFinished(f"Batch {batch_id} does not exist any more.")
    if batch.cancelled_at:
        raise _cancelled(batch, "nothing can be added")
    raise BatchFinished(f"Batch {batch_id} has ended; nothing can be added: open another one.")


def _cancelled(batch: "database.Batch", refused: str) -> BatchCancelled:
    return BatchCancelled(f"Batch {batch.pk} was cancelled; {refused}. {batch.reason}".strip(), batch_id=batch.pk)
