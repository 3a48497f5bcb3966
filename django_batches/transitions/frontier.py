"""Finds the jobs that wait to be claimed: their queues, their batches, and the first position in each batch."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from .. import database

NONE = UUID(int=0)
BATCHES = 200
"""The maximum number of batches that one claim considers."""
LARGE, STEPS = 1_000, 4
"""A search skips the claimed jobs of up to STEPS batches, each of which has at least LARGE jobs before its frontier."""

Place = tuple[UUID, int, str | None]
"""Where a job waits: its batch, its position, and its queue (None: it may be any queue)."""


@dataclass
class Frontier:
    """Remembers up to which position the coordinator has claimed the jobs of a queue, so that searches begin there.

    A claimed row stays in the index of due rows until a vacuum. While an older snapshot is open (a dump, a long
    report), each search that passes such a row also reads its page, so a search from the start would become slower with
    each job claimed. `include` reports a job that waits before the frontier. `restart` makes searches find all jobs.
    """

    before: UUID = NONE
    """Neither this batch nor a batch with a smaller key has waiting jobs."""
    positions: dict[UUID, int] = field(default_factory=dict)
    """For each batch, the position before which no job waits."""
    turn: UUID | None = None
    """The batch after which the next claim begins, if more batches have waiting jobs than one claim considers."""
    is_reached: bool = False
    """Whether all jobs that the coordinator knows of have been claimed."""
    _is_part: bool = False
    """Whether the last search began after `turn`, and so did not see the batches before it."""

    def restart(self) -> None:
        """Forgets what has been claimed. The next search considers all positions, and all batches after `turn`."""
        self.before, self.positions, self.is_reached = NONE, {}, False

    def include(self, batch_id: UUID, position: int = 0) -> None:
        """Moves the frontier back, because jobs of this batch may wait at this position or later."""
        self.before = min(self.before, UUID(int=max(0, batch_id.int - 1)))
        if self.positions.get(batch_id, 0) > position:
            self.positions[batch_id] = position
        self.is_reached = False

    def find_batches(self, queue: str) -> list[UUID]:
        """Returns the batches with jobs that wait on the queue, beginning after `turn`, at most `BATCHES`."""
        ids = self._search(queue, max(self.before, self.turn or NONE))
        if not ids and self.turn:
            self.turn = None
            ids = self._search(queue, self.before)
        self._is_part = self.turn is not None
        if ids and not self._is_part:
            self.before = UUID(int=ids[0].int - 1)
        self.is_reached = not ids
        return ids

    def advance(self, ids: list[UUID], jobs: Iterable[Any], *, is_all: bool) -> None:
        """Moves the frontier behind claimed jobs of the batches `ids`, which `find_batches` returned.

        `is_all` says that these batches have no other waiting jobs.
        """
        self.turn = ids[-1] if len(ids) == BATCHES else None
        self.is_reached = is_all and self.turn is None and not self._is_part
        for job in jobs:
            if job.position >= self.positions.get(job.batch_id, 0):
                self.positions[job.batch_id] = job.position + 1

    def _search(self, queue: str, after: UUID) -> list[UUID]:
        """Returns the batches with waiting jobs, in the order of their keys. Each costs one index probe."""
        large = [(key, start) for key, start in self.positions.items() if start >= LARGE and key > after]
        parts, params = [], []
        for key, start in sorted(sorted(large, key=lambda item: -item[1])[:STEPS]):
            if key.int > after.int + 1:
                parts.append(_between(has_end=True))
                params += [queue, database.parameter(after), database.parameter(key), queue, database.parameter(key)]
            parts.append(_FROM)
            params += [queue, database.parameter(key), start]
            after = key
        parts.append(_between(has_end=False))
        params += [queue, database.parameter(after), queue]
        rows = database.execute(f"SELECT batch_id FROM ({' UNION ALL '.join(parts)}) AS v LIMIT %s", [*params, BATCHES])
        return [database.as_uuid(key) for (key,) in rows]


_DUE = f"FROM {database.JOB} WHERE status = 'created' AND batch_id IS NOT NULL"


def _between(*, has_end: bool) -> str:
    """Returns SQL for the batches with waiting jobs after a key and, with `has_end`, before a second key."""
    end = " AND batch_id < %s" if has_end else ""

    def following(after: str) -> str:
        return f"SELECT batch_id {_DUE} AND queue = %s AND batch_id > {after}{end} ORDER BY batch_id LIMIT 1"

    return (
        f"SELECT * FROM (WITH RECURSIVE due(batch_id) AS (SELECT * FROM ({following('%s')}) AS first UNION ALL"
        f" SELECT ({following('due.batch_id')}) FROM due WHERE due.batch_id IS NOT NULL)"
        " SELECT batch_id FROM due WHERE batch_id IS NOT NULL) AS between_two"
    )


# Keep ORDER BY: without it, PostgreSQL reads the table instead of the index if most rows belong to the batch.
_FROM = (
    f"SELECT * FROM (SELECT batch_id {_DUE} AND queue = %s AND batch_id = %s AND position >= %s"
    " ORDER BY position LIMIT 1) AS large"
)


def queues() -> list[str]:
    """Returns the queues on which jobs wait, by one index probe per queue. The number of jobs does not matter."""
    rows = database.execute(
        f"WITH RECURSIVE due(queue) AS (SELECT MIN(queue) {_DUE} UNION ALL"
        f" SELECT (SELECT MIN(queue) {_DUE} AND queue > due.queue) FROM due WHERE due.queue IS NOT NULL)"
        " SELECT queue FROM due WHERE queue IS NOT NULL"
    )
    return [queue for (queue,) in rows]
