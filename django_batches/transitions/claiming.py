"""Due rows to RQ: claimed here in set-based statements, pushed by the coordinator after the commit.

A claim gives the row a new dispatch number. If the push is lost, the reconciler finds a row in flight of which Redis
knows nothing, and it is claimed again.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from .. import database
from ..database import inserting
from ..states import IN_FLIGHT, JobStatus
from .frontier import Frontier, Place
from .steps import within_budget

if TYPE_CHECKING:
    from ..models import Batch

WINDOW = 2_000
"""Jobs of one batch that may be in RQ at a time: bounds Redis, makes pause and cancel quick."""


class Claimed(NamedTuple):
    """A row that was claimed: everything that goes to RQ."""

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


_FIELDS = (
    "j.id, j.dispatch, COALESCE(j.batch_id, j.callback_of_id), j.event, j.func, j.arguments, j.queue, j.timeout,"
    " j.attempts, j.max_attempts, j.no_retry, j.position"
)
_RETURNED = _FIELDS.replace("j.", "")


def claim_jobs(
    queue: str, limit: int, fence: Callable[[], datetime], frontier: Frontier | None = None
) -> list[Claimed]:
    """Claims up to `limit` jobs of a queue, in turns over its batches, from the frontier on, which moves.

    They come in the order in which they are to run: those of the batch with the fewest of them first.
    Batches that are paused, cancelled, at their window or locked by somebody are passed over.
    """
    frontier = frontier or Frontier()
    ids = frontier.look(queue)  # before the transaction: where nothing waits, there is none to be written to the disk
    if not ids:
        return []
    with database.atomic():
        fence()
        batches = {
            key: batch
            for key, batch in database.lock_batches(ids, skip_locked=True).items()
            if not (batch.is_paused or batch.cancelled_at or batch.finished_at) and _room(batch) > 0
        }
        rooms = [(key, min(_room(batch), limit), frontier.positions.get(key, 0)) for key, batch in batches.items()]
        claimed = _claim(queue, rooms, limit) if rooms else []
        counts: dict[UUID, int] = defaultdict(int)
        for job in claimed:
            counts[job.batch_id] += 1
        if counts:
            _add_in_flight(counts)
    has_room = len(claimed) < limit
    astray = [key for key, _, start in rooms if start and has_room and not counts.get(key)]
    for key in astray:  # the look has seen a job of it, so it is before the place from which this claim went on
        del frontier.positions[key]
    is_all = has_room and len(rooms) == len(ids) and all(counts.get(key, 0) < room for key, room, _ in rooms)
    frontier.claimed(ids, claimed, is_all=is_all and not astray)
    # The batches with the fewest first, each in its own order: behind all that a huge one was given, they would
    # wait for it a second time.
    return sorted(claimed, key=lambda job: counts[job.batch_id])


def _room(batch: "Batch") -> int:
    """How many more of its jobs may be in RQ."""
    return min(batch.concurrency or WINDOW, WINDOW) - batch.in_flight


def claim_callbacks(limit: int, fence: Callable[[], datetime]) -> list[Claimed]:
    """Claims callbacks; they hold no place in a window and go to the front of their queue."""
    due = (
        f"SELECT id FROM {database.JOB} WHERE status = 'created' AND callback_of_id IS NOT NULL"
        f" ORDER BY id LIMIT %s{database.for_update_skip_locked()}"
    )
    with database.atomic():
        fence()
        return _claimed(
            database.execute(
                f"UPDATE {database.JOB} SET status = 'queued', dispatch = dispatch + 1"
                f" WHERE status = 'created' AND id {_among(due)} RETURNING {_RETURNED}",
                [limit],
            )
        )


def _among(chosen: str) -> str:
    """The condition that a key is among those of a sub-select with a LIMIT."""
    # An array, because PostgreSQL may run the sub-select of an IN again and again, which makes nothing of its LIMIT.
    return f"= ANY(ARRAY({chosen}))" if database.connection().vendor == "postgresql" else f"IN ({chosen})"


def claimed_as_written(new: Sequence[Sequence[Any]]) -> list[Claimed]:
    """Those of new rows, in the columns of `inserting.jobs`, that were claimed as they were written."""
    names = list(inserting.NEW_JOB_IN_STATUS)
    found = [
        dict(zip(names, row, strict=True)) for row in new if row[len(inserting.NEW_JOB) :][:1] == [JobStatus.QUEUED]
    ]
    return [
        Claimed(
            job["id"], job["dispatch"], job["batch_id"] or job["callback_of_id"], job["event"], job["func"],
            job["arguments"], job["queue"], job["timeout"], 0, job["max_attempts"], job["no_retry"], job["position"],
        )
        for job in found
    ]  # fmt: skip


def promote_due(fence: Callable[[], datetime]) -> list[Place]:
    """Scheduled rows whose time has come, by the database's clock, wait for a claim again; where the jobs stand.

    In chunks, for `TIME_BUDGET` seconds: a million may be due at once. The next call continues.
    """
    if not database.jobs().filter(status=JobStatus.SCHEDULED).exists():
        return []
    chunks = within_budget(_promote_chunks(fence))
    return [(database.as_uuid(batch), position, queue) for chunk in chunks for batch, position, queue in chunk if batch]


def _promote_chunks(fence: Callable[[], datetime]) -> Iterator[list[tuple[Any, ...]]]:
    due = (
        f"SELECT id FROM {database.JOB} WHERE status = 'scheduled' AND due_at <= %s"
        f" ORDER BY due_at LIMIT {database.CHUNK}{database.for_update_skip_locked()}"
    )
    while True:
        with database.atomic():
            promoted = database.execute(
                f"UPDATE {database.JOB} SET status = 'created' WHERE status = 'scheduled' AND id {_among(due)}"
                " RETURNING batch_id, position, queue",
                [database.parameter(fence())],
            )
        yield promoted
        if len(promoted) < database.CHUNK:
            return


def promote_retries() -> int:
    """Further attempts at once, without their backoff: for tests."""
    return database.jobs().filter(status=JobStatus.SCHEDULED, attempts__gt=0).update(status=JobStatus.CREATED)


def mark_running(executions: Sequence[tuple[UUID, int, datetime, str]], fence: Callable[[], datetime]) -> int:
    """Rows that hold a lease: (job, dispatch, started at, worker)."""
    if not executions:
        return 0
    table, params = database.values(
        {"id": "uuid", "dispatch": "int", "started_at": "timestamptz", "worker": "text"}, executions
    )
    with database.atomic():
        fence()
        return len(
            database.execute(
                f"UPDATE {database.JOB} SET status = 'running', started_at = v_started_at, worker = v_worker"
                f" FROM {table} WHERE id = v_id AND dispatch = v_dispatch AND status = 'queued' RETURNING id",
                params,
            )
        )


def _claim(queue: str, rooms: list[tuple[UUID, int, int]], limit: int) -> list[Claimed]:
    """`rooms` are batches, how many of each at most, and from which position on."""
    if database.connection().vendor == "postgresql":
        table, params = database.values({"batch_id": "uuid", "room": "int", "start": "int"}, rooms)
        claimed = database.execute(
            f"UPDATE {database.JOB} j SET status = 'queued', dispatch = j.dispatch + 1"
            # An array and no join: the planner knows how many rows it would join, and prefers to read the whole table
            # up to 100,000 rows. And not plainly status = 'created': it may then read a whole partial index instead.
            f" WHERE j.status || '' = 'created' AND j.id = ANY(ARRAY(SELECT t.id FROM {table} CROSS JOIN LATERAL ("
            f"SELECT c.id, row_number() OVER (ORDER BY c.position) AS turn FROM {database.JOB} c"
            " WHERE c.batch_id = v_batch_id AND c.queue = %s AND c.status = 'created' AND c.batch_id IS NOT NULL"
            " AND c.position >= v_start ORDER BY c.position LIMIT v_room) t ORDER BY t.turn, v_batch_id LIMIT %s))"
            f" RETURNING {_FIELDS}",
            [*params, queue, limit],
        )
        return _claimed(claimed)
    ids = _in_turns(
        [
            list(
                database.jobs()
                .filter(batch=key, queue=queue, status=JobStatus.CREATED, position__gte=start)
                .order_by("position")
                .values_list("pk", flat=True)[:room]
            )
            for key, room, start in rooms
        ]
    )[:limit]
    table, params = database.values({"id": "uuid"}, [[key] for key in ids])
    claimed = database.execute(
        f"UPDATE {database.JOB} SET status = 'queued', dispatch = dispatch + 1"
        f" WHERE status = 'created' AND id IN (SELECT v_id FROM {table}) RETURNING {_RETURNED}",
        params,
    )
    return _claimed(claimed)


def _in_turns(lists: list[list[UUID]]) -> list[UUID]:
    longest = max((len(ids) for ids in lists), default=0)
    return [ids[turn] for turn in range(longest) for ids in lists if turn < len(ids)]


def _add_in_flight(counts: dict[UUID, int]) -> None:
    table, params = database.values({"id": "uuid", "claimed": "int"}, sorted(counts.items()))
    database.execute(
        f"UPDATE {database.BATCH} SET in_flight = in_flight + v_claimed FROM {table} WHERE id = v_id", params
    )


def _claimed(found: Iterable[tuple[Any, ...]]) -> list[Claimed]:
    """Sorted by key, the order in which they were added: RETURNING gives them in any order."""
    claimed = [Claimed(database.as_uuid(r[0]), r[1], database.as_uuid(r[2]), *r[3:]) for r in found]
    return sorted(claimed, key=lambda job: job.id.int)


def in_flight(after: UUID | None, limit: int) -> list[tuple[UUID, int, UUID, str, str, bool]]:
    """A page of the rows that are in RQ by the books: (job, dispatch, batch, queue, status, is a callback)."""
    found = database.jobs().filter(status__in=IN_FLIGHT).order_by("pk")
    if after:
        found = found.filter(pk__gt=after)
    page = found.values_list("pk", "dispatch", "batch_id", "callback_of_id", "queue", "status")[:limit]
    return [(pk, dispatch, b or c, queue, status, c is not None) for pk, dispatch, b, c, queue, status in page]


def still_in_flight(ids: Iterable[UUID]) -> set[tuple[UUID, int]]:
    """Those of the jobs that are in RQ by the books, with their dispatch."""
    found = database.jobs().filter(pk__in=list(ids), status__in=IN_FLIGHT)
    return set(found.values_list("pk", "dispatch"))


def has_work(queues: Sequence[str], now: datetime) -> bool:
    """Whether anything is due or in flight on these queues (none: on all); what is held or due later is not."""
    work = database.jobs().filter(queue__in=queues) if queues else database.jobs()
    if work.filter(status__in=IN_FLIGHT).exists():
        return True
    due = work.filter(status=JobStatus.CREATED) | work.filter(status=JobStatus.SCHEDULED, due_at__lte=now)
    return due.exclude(batch__is_paused=True).exists()
