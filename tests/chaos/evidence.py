"""The evidence of a round, and which runs its faults have hit."""

from collections import defaultdict
from dataclasses import dataclass

from . import ledger
from .faults import LOSES, PARTITIONS, Fault
from .history import ENDED, History
from .ledger import Run

SLACK = 0.25
"""Seconds by which times that different processes record may differ."""
KILLING = ("executor killed", "supervisor killed", "killed before", "killed after")
STARVING = "executor out of memory"
FREEZING = ("executor frozen", STARVING, "host frozen", "hung before", *PARTITIONS)
STOPPING = ("executor frozen", "host frozen")
HITTING = (*KILLING, *FREEZING)


@dataclass(frozen=True)
class Row:
    """The last state of a job or callback."""

    job: str
    batch: str
    event: str
    position: int
    round: int
    status: str
    dispatch: int
    attempts: int
    losses: int
    error: str
    error_type: str
    result: str | None
    """As JSON."""
    returned: str
    """The batch that it has returned, or empty."""


@dataclass(frozen=True)
class Child:
    """A batch that a run of a job or callback has opened."""

    batch: str
    parent: str
    dispatch: int
    """Of the run that opened it."""
    is_unnotified: bool
    """Its parent has not been notified of its end."""


@dataclass
class Evidence:
    """The evidence of a round."""

    runs: list[Run]
    faults: list[Fault]
    history: History
    rows: dict[str, Row]
    batches: dict[str, tuple[str, str, int, int]]
    """(description, status, round, total)"""
    acknowledged: dict[str, int]
    children: list[Child]

    def __post_init__(self) -> None:
        self.children_of: dict[tuple[str, int], list[Child]] = defaultdict(list)
        for child in self.children:
            self.children_of[child.parent, child.dispatch].append(child)
        self.callbacks_of: dict[str, list[Row]] = defaultdict(list)
        self.runs_of_jobs_of: dict[str, list[Run]] = defaultdict(list)
        """By batch, without the runs of callbacks."""
        for row in self.rows.values():
            if row.event:
                self.callbacks_of[row.batch].append(row)
        for run in self.runs:
            if not run.event:
                self.runs_of_jobs_of[run.batch].append(run)
        self.runs_of = ledger.by_job(self.runs)
        self.flights = self.history.flights()

    def was_cut_off(self, run: Run) -> bool:
        """Whether a fault hit this run, or its keys in Redis, before its outcome was applied."""
        left = self.flights.get((run.job, run.dispatch), (0.0, float("inf")))[1] + SLACK
        for fault in self.faults:
            if fault.ended < run.started - SLACK or fault.began > left:
                continue
            if fault.kind in LOSES or (fault.jobs and f"{run.job}-{run.dispatch}" in fault.changed):
                return True
            if run.pid in fault.pids and (fault.kind in FREEZING or (fault.kind in KILLING and run.is_last_of_pid)):
                return True
        return False

    def was_changed_in_rq(self, row: Row) -> bool:
        """Whether a fault has cancelled, stopped or otherwise changed one of its runs through RQ."""
        return any(key.startswith(f"{row.job}-") for fault in self.faults for key in fault.changed)

    def may_have_starved(self, row: Row) -> bool:
        """Whether an executor ran out of memory while a run of this job was in flight."""
        times = [self.flights[flight] for flight in self.flights if flight[0] == row.job]
        return any(
            fault.kind == STARVING and fault.began < left and fault.ended > taken
            for fault in self.faults
            for taken, left in times
        )

    def was_stopped_before(self, run: Run) -> bool:
        """Whether its process was frozen before it called the function, after its last check of the row."""
        taken = self.flights.get((run.job, run.dispatch), (run.started, 0.0))[0]
        return any(
            fault.kind in STOPPING
            and run.pid in fault.pids
            and taken - SLACK < fault.ended
            and fault.began < run.started
            for fault in self.faults
        )

    def hit(self, fault: Fault, run: Run) -> bool:
        """Whether a fault killed or froze the process during this run."""
        end = run.finished or run.raised or float("inf")
        at_it = fault.kind in FREEZING or (run.is_last_of_pid and end == float("inf"))
        return fault.kind in HITTING and run.pid in fault.pids and run.started <= fault.began < end and at_it

    def recovered_at(self, run: Run) -> float:
        """When the job of a run that was hit ran again, or ended."""
        again = [each.started for each in self.runs_of[run.job] if each.dispatch > run.dispatch]
        ended = [step.at for step in self.history.by_job[run.job] if step.new in ENDED and step.at > run.started]
        return min([*again, *ended], default=run.started)

    def bad_children(self, job: str, dispatch: int) -> list[Child]:
        """The children of a run that did not succeed, or whose success callback did not."""
        return [
            child
            for child in self.children_of.get((job, dispatch), ())
            if self.batches[child.batch][1] != "succeeded"
            or any(row.event == "success" and row.status != "succeeded" for row in self.callbacks_of[child.batch])
        ]

    def coordinator_active_from(self, at: float) -> float:
        """The first time from `at` on when no coordinator hangs; several may hang in a row."""
        hangs = [each for each in self.faults if each.kind == "hung before" and each.target.startswith("coordinator")]
        for hang in sorted(hangs, key=lambda each: each.began):
            if hang.began <= at <= hang.ended:
                at = hang.ended
        return at

    def status_of(self, batch: str) -> str:
        return self.batches[batch][1] if batch in self.batches else "gone"

    def name(self, batch: str) -> str:
        return f"batch {batch} ({self.batches[batch][0] if batch in self.batches else 'gone'})"

    def round_of(self, run: Run) -> int:
        return next((s.round for s in self.history.by_job[run.job] if s.dispatch == run.dispatch), 0)
