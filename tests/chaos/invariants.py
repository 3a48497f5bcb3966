"""What must hold when a round is over. Each function gives the violations of one promise, naming the batch."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from . import ledger
from .faults import LOSES, PARTITIONS, Fault
from .history import ENDED, History
from .ledger import Run

SLACK = 0.25
"""Seconds by which the moments that different processes write down may differ."""
KILLING = ("executor killed", "supervisor killed", "killed before", "killed after")
FREEZING = ("executor frozen", "host frozen", "hung before", *PARTITIONS)
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


@dataclass
class Evidence:
    """All that is known of a round."""

    runs: list[Run]
    faults: list[Fault]
    history: History
    rows: dict[str, Row]
    batches: dict[str, tuple[str, str, int, int]]
    """(description, status, round, total)"""
    acknowledged: dict[str, int]

    def __post_init__(self) -> None:
        self.runs_of = ledger.by_job(self.runs)
        self.flights = self.history.flights()

    def was_cut_off(self, run: Run) -> bool:
        """Whether a fault hit this very run, or what Redis knew of it, before the books had its outcome."""
        left = self.flights.get((run.job, run.dispatch), (0.0, float("inf")))[1] + SLACK
        for fault in self.faults:
            if fault.ended < run.started - SLACK or fault.began > left:
                continue
            if fault.kind in LOSES:
                return True
            if run.pid in fault.pids and (fault.kind in FREEZING or (fault.kind in KILLING and run.is_last_of_pid)):
                return True
        return False

    def was_stopped_before(self, run: Run) -> bool:
        """Whether its process was stopped on its way to the function, after the last look that it could take."""
        taken = self.flights.get((run.job, run.dispatch), (run.started, 0.0))[0]
        return any(
            fault.kind in STOPPING
            and run.pid in fault.pids
            and taken - SLACK < fault.ended
            and fault.began < run.started
            for fault in self.faults
        )

    def hit(self, fault: Fault, run: Run) -> bool:
        """Whether a fault killed or froze a process in the middle of this run."""
        end = run.finished or run.raised or float("inf")
        at_it = fault.kind in FREEZING or (run.is_last_of_pid and end == float("inf"))
        return fault.kind in HITTING and run.pid in fault.pids and run.started <= fault.began < end and at_it

    def back(self, run: Run) -> float:
        """When the job of a run that was hit ran again, or had ended."""
        again = [each.started for each in self.runs_of[run.job] if each.dispatch > run.dispatch]
        ended = [step.at for step in self.history.by_job[run.job] if step.new in ENDED and step.at > run.started]
        return min([*again, *ended], default=run.started)

    def told(self, batch: str) -> str:
        return f"batch {batch} ({self.batches[batch][0] if batch in self.batches else 'gone'})"


def nothing_outstanding(e: Evidence) -> Iterator[str]:
    for key, (_, status, *_) in e.batches.items():
        if status not in ENDED:
            yield f"{e.told(key)}: still {status}"
    for row in e.rows.values():
        if row.status not in ENDED:
            yield f"{e.told(row.batch)}: job {row.job} {row.event} still {row.status}, dispatch {row.dispatch}"


def acknowledged_batches_are_there(e: Evidence) -> Iterator[str]:
    for key, count in e.acknowledged.items():
        if key not in e.batches:
            yield f"batch {key} was acknowledged and is gone"
        elif e.batches[key][3] < count:
            yield f"{e.told(key)}: {count} jobs were acknowledged, it has {e.batches[key][3]}"


def succeeded_means_finished(e: Evidence) -> Iterator[str]:
    for row in e.rows.values():
        if row.status == "succeeded" and not any(run.finished for run in e.runs_of[row.job]):
            yield f"{e.told(row.batch)}: job {row.job} succeeded and never finished a run"


def finished_means_succeeded(e: Evidence) -> Iterator[str]:
    for run in e.runs:
        row = e.rows.get(run.job)
        has_failed = row is not None and row.status != "succeeded" and row.round == _round_of(e, run)
        if run.finished and row and has_failed and not e.was_cut_off(run):
            yield f"{e.told(run.batch)}: {_run(run)} finished, and the job is {row.status}: {row.error[:100]}"


def finished_is_not_repeated(e: Evidence) -> Iterator[str]:
    """A run that finished and was hit by nothing is not run again."""
    for runs in e.runs_of.values():
        for run, after in pairwise(runs):
            is_same = _round_of(e, run) == _round_of(e, after)
            if run.finished and is_same and not e.was_cut_off(run) and not e.was_stopped_before(after):
                yield f"{e.told(run.batch)}: {_run(run)} finished unhurt, and {_run(after)} ran it again"


def succeeded_is_not_started_again(e: Evidence) -> Iterator[str]:
    for job, steps in e.history.by_job.items():
        for step in steps:
            if step.new == "succeeded":
                for run in e.runs_of.get(job, []):
                    is_late = run.started > step.at + SLACK and not e.was_stopped_before(run)
                    if is_late and not any(s.old in ENDED and s.at > step.at for s in steps):
                        yield f"{e.told(step.batch)}: {_run(run)} began {run.started - step.at:.1f} s after its success"


def ended_once_per_round(e: Evidence) -> Iterator[str]:
    for job, steps in e.history.by_job.items():
        for step in steps:
            if step.old in ENDED and step.new != "created":
                yield f"{e.told(step.batch)}: job {job} went from {step.old} to {step.new}"
        for (round_, _), count in Counter((s.round, s.event) for s in steps if s.new in ENDED and not s.event).items():
            if count > 1:
                yield f"{e.told(steps[0].batch)}: job {job} ended {count} times in round {round_}"
    for (batch, round_), count in Counter((batch, round_) for _, batch, round_, _ in e.history.ends).items():
        if count > 1:
            yield f"{e.told(batch)}: ended {count} times in round {round_}"


def attempts_were_runs(e: Evidence) -> Iterator[str]:
    """An attempt that is counted has started, or its executor was killed at it, which is counted as a loss too."""
    for row in e.rows.values():
        if row.attempts > len(e.runs_of[row.job]) + row.losses:
            yield f"{e.told(row.batch)}: job {row.job} has {row.attempts} attempts, ran {len(e.runs_of[row.job])} times"


def without_faults_runs_are_attempts(e: Evidence) -> Iterator[str]:
    for row in e.rows.values() if not e.faults else ():
        if row.round == 0 and row.attempts != len(e.runs_of[row.job]):
            yield f"{e.told(row.batch)}: job {row.job} has {row.attempts} attempts, ran {len(e.runs_of[row.job])} times"


def events_are_told_once(e: Evidence) -> Iterator[str]:
    callbacks = Counter((row.batch, row.round, row.event) for row in e.rows.values() if row.event)
    told: dict[tuple[str, int], set[str]] = defaultdict(set)
    for (batch, round_, event), count in callbacks.items():
        told[batch, round_].add(event)
        if count != 1:
            yield f"{e.told(batch)}: {event} was scheduled {count} times in round {round_}"
    failed = {(s.batch, s.round) for s in e.history.steps if s.new == "failed" and not s.event}
    for _, batch, round_, status in e.history.ends:
        if batch not in e.acknowledged:
            continue  # its creator was killed, maybe before it had registered the callbacks
        wanted = {"finish"} | ({"success"} if status == "succeeded" else set())
        wanted |= {"failure"} if status == "failed" or (batch, round_) in failed else set()
        found = told[batch, round_] - {"attempted"}
        if found != wanted or ("attempted" not in told[batch, round_] and status != "cancelled"):
            yield f"{e.told(batch)}: round {round_} ended as {status} and told {sorted(told[batch, round_])}"


def callbacks_ran(e: Evidence) -> Iterator[str]:
    for row in e.rows.values():
        if row.event and row.status != "succeeded" and row.losses < 3:
            yield f"{e.told(row.batch)}: callback {row.event} of round {row.round} is {row.status}: {row.error[:100]}"


def callbacks_come_after_the_jobs(e: Evidence) -> Iterator[str]:
    ended = {(batch, round_): at for at, batch, round_, _ in e.history.ends}
    for run in e.runs:
        row = e.rows.get(run.job)
        if row and row.event in ("success", "finish"):
            at = ended.get((row.batch, row.round))
            if at is None or run.started < at - SLACK:
                yield f"{e.told(row.batch)}: {_run(run)} began before the batch had ended"


def _round_of(e: Evidence, run: Run) -> int:
    return next((s.round for s in e.history.by_job[run.job] if s.dispatch == run.dispatch), 0)


def _run(run: Run) -> str:
    return f"run {run.job}-{run.dispatch} {run.event} (pid {run.pid}, {run.started:.3f} to {run.finished or 0:.3f})"


ALL = [
    nothing_outstanding, acknowledged_batches_are_there, succeeded_means_finished, finished_means_succeeded,
    finished_is_not_repeated, succeeded_is_not_started_again, ended_once_per_round, attempts_were_runs,
    without_faults_runs_are_attempts, events_are_told_once, callbacks_ran, callbacks_come_after_the_jobs,
]  # fmt: skip


def judge(evidence: Evidence) -> list[str]:
    return [f"{check.__name__}: {violation}" for check in ALL for violation in check(evidence)]
