"""Claims due rows by set-based statements. The coordinator pushes the claimed jobs to RQ after the commit.

A claim increments the row's dispatch number. If the push is lost, the reconciler finds that the row is in flight but
unknown to Redis, and makes it claimable again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from .. import database
from ..database.base import Room
from ..database.inserting import NewJob
from ..states import IN_FLIGHT, JobStatus
from .frontier import Frontier, Place
from .steps import within_budget

WINDOW = 2_000
"""How many jobs of one batch may be in RQ at a time. This saves Redis memory and makes pause and cancel quick."""


class Claimed(NamedTuple):
    """A claimed row, with all the columns that the push to RQ needs."""

    id: UUID
    dispatch: int
    batch_id: UUID
    event: str
    func: str
    arguments: str
    queue: str
    timeout: int
    attempts: int
    max_attempts: int
    no_retry: str
    position: int

    @classmethod
    def at_insert(cls, new: NewJob) -> "Claimed":
        """Returns the claim of a row that was inserted with the status `queued`."""
        fields = {name: value for name, value in new._asdict().items() if name in cls._fields}
        return cls(**fields | {"batch_id": new.batch_id or new.callback_of_id, "attempts": 0})


_COLUMNS = ", ".join(Claimed._fields).replace("batch_id", "COALESCE(batch_id, callback_of_id)")


def claim_jobs(
    queue: str, limit: int, fence: Callable[[], datetime], frontier: Frontier | None = None
) -> list[Claimed]:
    """Claims up to `limit` jobs of a queue, in turns from each of its batches, and advances the frontier.

    Skips batches that are on hold, locked, or at their limit of jobs in RQ. Returns the jobs in the order to push them.
    """
    frontier = frontier or Frontier()
    ids = frontier.find_batches(queue)  # search first: if no job waits, no transaction is needed
    if not ids:
        return []
    with database.atomic():
        fence()
        batches = {
            key: batch
            for key, batch in database.lock_batches(ids, skip_locked=True).items()
            if not (batch.is_paused or batch.cancelled_at or batch.finished_at) and _room(batch) > 0
        }
        rooms = [Room(key, min(_room(batch), limit), frontier.positions.get(key, 0)) for key, batch in batches.items()]
        claimed = _claim(*database.dialect().jobs_to_claim(queue, rooms, limit)) if rooms else []
        counts = Counter(job.batch_id for job in claimed)
        if counts:
            table, params = database.values({"id": UUID, "claimed": int}, sorted(counts.items()))
            database.execute(
                f"UPDATE {database.BATCH} SET in_flight = in_flight + v_claimed FROM {table} WHERE id = v_id", params
            )
    has_room = len(claimed) < limit
    # `find_batches` saw a waiting job of each of these batches. It must be before the position where the claim began.
    too_far = [room.batch_id for room in rooms if room.start and has_room and not counts[room.batch_id]]
    for key in too_far:
        del frontier.positions[key]
    is_all = has_room and len(rooms) == len(ids) and all(counts[room.batch_id] < room.room for room in rooms)
    frontier.advance(ids, claimed, is_all=is_all and not too_far)
    # Put the batches with the fewest jobs first: otherwise a small batch waits behind a huge one again, in RQ.
    return sorted(claimed, key=lambda job: counts[job.batch_id])


def _room(batch: "database.Batch") -> int:
    return min(batch.concurrency or WINDOW, WINDOW) - batch.in_flight


def claim_callbacks(limit: int, fence: Callable[[], datetime]) -> list[Claimed]:
    """Claims up to `limit` callbacks, regardless of `WINDOW`. The push puts them at the front of their queue."""
    due = database.dialect().first_jobs("status = 'created' AND callback_of_id IS NOT NULL ORDER BY id LIMIT %s")
    with database.atomic():
        fence()
        return _claim(f"status = 'created' AND {due}", [limit])


def promote_due(fence: Callable[[], datetime]) -> list[Place]:
    """Makes scheduled rows claimable if they are due by the database's clock. Returns the places of their jobs.

    A million rows may be due at once, so it works in chunks for `TIME_BUDGET` seconds. The next call continues.
    """
    if not database.jobs().filter(status=JobStatus.SCHEDULED).exists():
        return []
    chunks = within_budget(_promote_chunks(fence))
    return [(database.as_uuid(batch), position, queue) for chunk in chunks for batch, position, queue in chunk if batch]


def _promote_chunks(fence: Callable[[], datetime]) -> Iterator[list[tuple[Any, ...]]]:
    condition = f"status = 'scheduled' AND due_at <= %s ORDER BY due_at LIMIT {database.CHUNK}"
    due = database.dialect().first_jobs(condition)
    while True:
        with database.atomic():
            promoted = database.execute(
                f"UPDATE {database.JOB} SET status = 'created' WHERE status = 'scheduled' AND {due}"
                " RETURNING batch_id, position, queue",
                [database.parameter(fence())],
            )
        yield promoted
        if len(promoted) < database.CHUNK:
            return


def promote_retries() -> int:
    """For tests: makes jobs that wait for another attempt claimable at once, without their backoff."""
    return database.jobs().filter(status=JobStatus.SCHEDULED, attempts__gt=0).update(status=JobStatus.CREATED)


def mark_running(started: Sequence[tuple[UUID, int, datetime, str]], fence: Callable[[], datetime]) -> int:
    """Marks queued rows, given as (job, dispatch, started at, worker), as running. Returns how many it marked."""
    if not started:
        return 0
    columns = {"id": UUID, "dispatch": int, "started_at": datetime, "worker": str}
    table, params = database.values(columns, started)
    update = (
        f"UPDATE {database.JOB} SET status = 'running', started_at = v_started_at, worker = v_worker FROM {table}"
        " WHERE id = v_id AND dispatch = v_dispatch AND status = 'queued' RETURNING id"
    )
    with database.atomic():
        fence()
        return len(database.execute(update, params))


def _claim(condition: str, params: list[Any]) -> list[Claimed]:
    """Claims the jobs that meet a condition. Sorts them by key (the order of creation): RETURNING has no order."""
    rows = database.execute(
        f"UPDATE {database.JOB} SET status = 'queued', dispatch = dispatch + 1 WHERE {condition} RETURNING {_COLUMNS}",
        params,
    )
    claimed = [Claimed(database.as_uuid(row[0]), row[1], database.as_uuid(row[2]), *row[3:]) for row in rows]
    return sorted(claimed, key=lambda job: job.id.int)


def in_flight(after: UUID | None, limit: int) -> list[tuple[UUID, int, UUID, str, str, bool]]:
    """Returns the next rows in flight after a key, each as (job, dispatch, batch, queue, status, is a callback)."""
    rows = database.jobs().filter(status__in=IN_FLIGHT).order_by("pk")
    if after:
        rows = rows.filter(pk__gt=after)
    page = rows.values_list("pk", "dispatch", "batch_id", "callback_of_id", "queue", "status")[:limit]
    return [(pk, dispatch, b or c, queue, status, c is not None) for pk, dispatch, b, c, queue, status in page]


def still_in_flight(ids: Iterable[UUID]) -> set[tuple[UUID, int]]:
    """Returns (job, dispatch) of each of these jobs whose row is in flight."""
    rows = database.jobs().filter(pk__in=list(ids), status__in=IN_FLIGHT)
    return set(rows.values_list("pk", "dispatch"))


def has_work(queues: Sequence[str], now: datetime) -> bool:
    """Whether a job or callback on these queues (if empty: all) is in flight, or due and not of a paused batch."""
    work = database.jobs().filter(queue__in=queues) if queues else database.jobs()
    if work.filter(status__in=IN_FLIGHT).exists():
        return True
    due = work.filter(status=JobStatus.CREATED) | work.filter(status=JobStatus.SCHEDULED, due_at__lte=now)
    return due.exclude(batch__is_paused=True).exists()
