"""Which jobs wait to be claimed: on which queues, of which batches, from which position on."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from .. import database

NONE = UUID(int=0)
BATCHES = 200
"""Of a queue, that one claim looks at."""
LARGE, STEPS = 1_000, 4
"""Jobs that a batch must have behind its frontier to be stepped over in a look, and how many batches are."""

Place = tuple[UUID, int, str | None]
"""Where a job waits: batch, position, queue (None: any)."""


@dataclass
class Frontier:
    """Up to where the jobs of a queue have been claimed, as far as its coordinator knows.

    A claimed row stays in the index of due rows until a vacuum, and while a snapshot from before is open (a dump, a
    long report) each look that passes it reads its page as well: looks from the start would take longer with each job
    of a large batch. What comes back below is told by `include`, or found by the next look from the start.
    """

    before: UUID = NONE
    """Neither this batch nor one before it has jobs that wait."""
    positions: dict[UUID, int] = field(default_factory=dict)
    """Of a batch the position below which no job waits."""
    turn: UUID | None = None
    """The batch after which the next claim begins, where there are more than one claim looks at."""
    is_reached: bool = False
    """No job waits, by all that was told."""
    _is_part: bool = False
    """The last look began in the middle, with the batch whose turn it was."""

    def restart(self) -> None:
        """Looks begin from the start again; before that goes the batch whose turn it is."""
        self.before, self.positions, self.is_reached = NONE, {}, False

    def include(self, batch_id: UUID, position: int = 0) -> None:
        """Jobs of this batch wait, maybe, from this position on."""
        self.before = min(self.before, UUID(int=max(0, batch_id.int - 1)))
        if self.positions.get(batch_id, 0) > position:
            self.positions[batch_id] = position
        self.is_reached = False

    def look(self, queue: str) -> list[UUID]:
        """The batches with jobs that wait on the queue, the first one being that whose turn it is."""
        ids = self._batches(queue, max(self.before, self.turn or NONE))
        if not ids and self.turn:
            self.turn = None
            ids = self._batches(queue, self.before)
        self._is_part = self.turn is not None
        if ids and not self._is_part:
            self.before = UUID(int=ids[0].int - 1)
        self.is_reached = not ids
        return ids

    def claimed(self, ids: list[UUID], jobs: Iterable[Any], *, is_all: bool) -> None:
        """Notes that of the batches `ids`, which a look gave, these jobs were claimed, of each batch the first ones.

        With `is_all` none of them has another one.
        """
        self.turn = ids[-1] if len(ids) == BATCHES else None
        self.is_reached = is_all and self.turn is None and not self._is_part
        for job in jobs:
            if job.position >= self.positions.get(job.batch_id, 0):
                self.positions[job.batch_id] = job.position + 1

    def _batches(self, queue: str, after: UUID) -> list[UUID]:
        """In order of their keys: one index probe per batch."""
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
        found = database.execute(
            f"SELECT batch_id FROM ({' UNION ALL '.join(parts)}) AS v LIMIT %s", [*params, BATCHES]
        )
        return [database.as_uuid(key) for (key,) in found]


_DUE = f"FROM {database.JOB} WHERE status = 'created' AND batch_id IS NOT NULL"


def _between(*, has_end: bool) -> str:
    """The batches after one and, where it has an end, before another one."""
    end = " AND batch_id < %s" if has_end else ""

    def following(after: str) -> str:
        return f"SELECT batch_id {_DUE} AND queue = %s AND batch_id > {after}{end} ORDER BY batch_id LIMIT 1"

    return (
        f"SELECT * FROM (WITH RECURSIVE due(batch_id) AS (SELECT * FROM ({following('%s')}) AS first UNION ALL"
        f" SELECT ({following('due.batch_id')}) FROM due WHERE due.batch_id IS NOT NULL)"
        " SELECT batch_id FROM due WHERE batch_id IS NOT NULL) AS between_two"
    )


# Ordered, or PostgreSQL prefers to read the table until it meets a row of a batch that is most of it.
_FROM = (
    f"SELECT * FROM (SELECT batch_id {_DUE} AND queue = %s AND batch_id = %s AND position >= %s"
    " ORDER BY position LIMIT 1) AS large"
)


def queues() -> list[str]:
    """The queues on which jobs wait: one index probe per queue, whatever the number of jobs."""
    found = database.execute(
        f"WITH RECURSIVE due(queue) AS (SELECT MIN(queue) {_DUE} UNION ALL"
        f" SELECT (SELECT MIN(queue) {_DUE} AND queue > due.queue) FROM due WHERE due.queue IS NOT NULL)"
        " SELECT queue FROM due WHERE queue IS NOT NULL",
        [],
    )
    return [queue for (queue,) in found]
