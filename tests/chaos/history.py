"""Every change of a status, recorded by database triggers with the time of its commit."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import psycopg

ENDED = ("succeeded", "failed", "cancelled")
IN_FLIGHT = ("queued", "running")

TRIGGERS = """
CREATE TABLE chaos_job (id bigserial, job uuid, batch uuid, event text, dispatch int, round int, old text, new text);
CREATE TABLE chaos_batch (id bigserial, batch uuid, round int, status text);
CREATE FUNCTION chaos_note_job() RETURNS trigger AS $$ BEGIN
  INSERT INTO chaos_job (job, batch, event, dispatch, round, old, new) VALUES (NEW.id,
    COALESCE(NEW.batch_id, NEW.callback_of_id), NEW.event, NEW.dispatch, NEW.round, OLD.status, NEW.status);
  RETURN NULL; END $$ LANGUAGE plpgsql;
CREATE FUNCTION chaos_note_batch() RETURNS trigger AS $$ BEGIN
  INSERT INTO chaos_batch (batch, round, status) VALUES (NEW.id, NEW.round, NEW.status);
  RETURN NULL; END $$ LANGUAGE plpgsql;
CREATE TRIGGER chaos_job AFTER UPDATE OF status ON django_batches_batchjob FOR EACH ROW
  WHEN (OLD.status IS DISTINCT FROM NEW.status OR OLD.dispatch <> NEW.dispatch) EXECUTE FUNCTION chaos_note_job();
CREATE TRIGGER chaos_batch AFTER UPDATE OF finished_at ON django_batches_batch FOR EACH ROW
  WHEN (OLD.finished_at IS NULL <> (NEW.finished_at IS NULL)) EXECUTE FUNCTION chaos_note_batch();
"""


def install(connection: psycopg.Connection[Any]) -> None:
    """Creates the triggers."""
    connection.execute(TRIGGERS)


@dataclass(frozen=True)
class Step:
    """A change of the status of a job or callback."""

    at: float
    job: str
    batch: str
    event: str
    dispatch: int
    round: int
    old: str
    new: str


class History:
    """The status changes of all jobs and the ends of all batches, in order."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        time = "extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
        found = connection.execute(
            f"SELECT {time}, job, batch, event, dispatch, round, old, new FROM chaos_job ORDER BY id"
        )
        self.steps = [Step(at, job.hex, batch.hex, *rest) for at, job, batch, *rest in found]
        self.by_job: dict[str, list[Step]] = defaultdict(list)
        for step in self.steps:
            self.by_job[step.job].append(step)
        ends = connection.execute(f"SELECT {time}, batch, round, status FROM chaos_batch ORDER BY id")
        turns = [(at, batch.hex, round_, status) for at, batch, round_, status in ends]
        self.ends = [turn for turn in turns if turn[-1] in ENDED]
        self.turns_of: dict[str, list[tuple[float, str, int, str]]] = defaultdict(list)
        """The times when each batch ended or was reopened."""
        for turn in turns:
            self.turns_of[turn[1]].append(turn)

    def flights(self) -> dict[tuple[str, int], tuple[float, float]]:
        """By (job, dispatch): the times when it went into flight and when its outcome was applied."""
        began: dict[tuple[str, int], float] = {}
        found: dict[tuple[str, int], tuple[float, float]] = {}
        for step in self.steps:
            flight = step.job, step.dispatch
            if step.new in IN_FLIGHT:
                began.setdefault(flight, step.at)
                found[flight] = (began[flight], float("inf"))
            elif step.old in IN_FLIGHT:
                # A callback that is inserted as queued has no earlier step. Its UUIDv7 contains the time, unless the
                # clock of its host was ahead.
                found[flight] = (began.get(flight, min(int(step.job[:12], 16) / 1000, step.at)), step.at)
        return found
