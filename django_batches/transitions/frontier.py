"""Which jobs wait to be claimed: on which queues, of which batches, from which position on."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from .. import database

NONE = UUID(int=0)
BATCHES = 200
"""Batches of a queue that one claim considers."""
LARGE, STEPS = 1_000, 4
"""Jobs that a batch must have before its frontier for a search to step over it, and how many batches a search does."""

Place = tuple[UUID, int, str | None]
"""Where a job waits: batch, position, queue (None: any)."""


@dataclass
class Frontier:
    """How far the jobs of a queue have been claimed, as far as the coordinator knows.

    A claimed row stays in the index of due rows until a vacuum. While an older snapshot is open (a dump, a long
    report), each search that passes such a row also reads its page: searches from the start would take longer with
    each job of a large batch. `include` adds jobs that wait again before the frontier; `restart` finds all others.
    """

    before: UUID = NONE
    """Neither this batch nor an earlier one has waiting jobs."""
    positions: dict[UUID, int] = field(default_factory=dict)
    """Per batch the position before which no job waits."""
    turn: UUID | None = None
    """The batch after which the next claim begins, if there are more batches than one claim considers."""
    is_reached: bool = False
    """No job waits, as far as is known."""
    _is_part: bool = False
    """The last search began in the middle, at the batch whose turn it is."""

    def restart(self) -> None:
        """The next search begins at the start again, or at the batch whose turn it is."""
        self.before, self.positions, self.is_reached = NONE, {}, False

    def include(self, batch_id: UUID, position: int = 0) -> None:
        """Jobs of this batch may wait from this position on."""
        self.before = min(self.before, UUID(int=max(0, batch_id.int - 1)))
        if self.positions.get(batch_id, 0) > position:
            self.positions[batch_id] = position
        self.is_reached = False

    def find_batches(self, queue: str) -> list[UUID]:
        """The batches with jobs that wait on the queue, beginning with the one whose turn it is."""
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
        """Moves behind claimed jobs, the first ones of some of the batches `ids` that `find_batches` returned.

        With `is_all`, these batches have no other waiting jobs.
        """
        self.turn = ids[-1] if len(ids) == BATCHES else None
        self.is_reached = is_all and self.turn is None and not self._is_part
        for job in jobs:
            if job.position >= self.positions.get(job.batch_id, 0):
                self.positions[job.batch_id] = job.position + 1

    def _search(self, queue: str, after: UUID) -> list[UUID]:
        """The batches in the order of their keys, with one index probe each."""
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
    """The batches after one and, if it has an end, before another one."""
    end = " AND batch_id < %s" if has_end else ""

    def following(after: str) -> str:
        return f"SELECT batch_id {_DUE} AND queue = %s AND batch_id > {after}{end} ORDER BY batch_id LIMIT 1"

    return (
        f"SELECT * FROM (WITH RECURSIVE due(batch_id) AS (SELECT * FROM ({following('%s')}) AS first UNION ALL"
        f" SELECT ({following('due.batch_id')}) FROM due WHERE due.batch_id IS NOT NULL)"
        " SELECT batch_id FROM due WHERE batch_id IS NOT NULL) AS between_two"
    )


# Without the order, PostgreSQL reads the table until it meets a row of the batch, if most rows are of that batch.
_FROM = (
    f"SELECT * FROM (SELECT batch_id {_DUE} AND queue = %s AND batch_id = %s AND position >= %s"
    " ORDER BY position LIMIT 1) AS large"
)


def queues() -> list[str]:
    """The queues on which jobs wait: one index probe per queue, whatever the number of jobs."""
    rows = database.execute(
        f"WITH RECURSIVE due(queue) AS (SELECT MIN(queue) {_DUE} UNION ALL"
        f" SELECT (SELECT MIN(queue) {_DUE} AND queue > due.queue) FROM due WHERE due.queue IS NOT NULL)"
        " SELECT queue FROM due WHERE queue IS NOT NULL"
    )
    return [queue for (queue,) in rows]
