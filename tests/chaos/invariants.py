"""What must hold when a round is over. Each function gives the violations of one promise, naming the batch."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from . import trees
from .evidence import SLACK, Evidence
from .history import ENDED
from .ledger import Run


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
        has_failed = row is not None and row.status != "succeeded" and row.round == e.round_of(run)
        is_by_child = bool(e.bad_children(run.job, run.dispatch))
        if run.finished and row and has_failed and not is_by_child and not e.was_cut_off(run):
            yield f"{e.told(run.batch)}: {_run(run)} finished, and the job is {row.status}: {row.error[:100]}"


def finished_is_not_repeated(e: Evidence) -> Iterator[str]:
    """A run that finished and was hit by nothing is not run again."""
    for runs in e.runs_of.values():
        for run, after in pairwise(runs):
            is_same = e.round_of(run) == e.round_of(after)
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
            if step.old in ENDED and step.new not in ("created", "waiting"):
                yield f"{e.told(step.batch)}: job {job} went from {step.old} to {step.new}"
        for (round_, _), count in Counter((s.round, s.event) for s in steps if s.new in ENDED and not s.event).items():
            if count > 1:
                yield f"{e.told(steps[0].batch)}: job {job} ended {count} times in round {round_}"
    for (batch, round_), count in Counter((batch, round_) for _, batch, round_, _ in e.history.ends).items():
        if count > 1:
            yield f"{e.told(batch)}: ended {count} times in round {round_}"


def attempts_were_runs(e: Evidence) -> Iterator[str]:
    """An attempt that is counted has started, or its executor was killed at it, which is counted as a loss too.

    Unless it was stopped through RQ, or had no memory left for the way to its function.
    """
    for row in e.rows.values():
        is_more = row.attempts > len(e.runs_of[row.job]) + row.losses
        if is_more and not e.was_changed_in_rq(row) and not e.may_have_starved(row):
            yield f"{e.told(row.batch)}: job {row.job} has {row.attempts} attempts, ran {len(e.runs_of[row.job])} times"


def without_faults_runs_are_attempts(e: Evidence) -> Iterator[str]:
    """Not of a job that was cancelled in the middle of its run, because it wanted to open a child."""
    for row in e.rows.values() if not e.faults else ():
        if row.round == 0 and row.status != "cancelled" and row.attempts != len(e.runs_of[row.job]):
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
        is_excused = row.losses >= 3 or e.bad_children(row.job, row.dispatch) or e.was_changed_in_rq(row)
        if row.event and row.status != "succeeded" and not is_excused:
            yield f"{e.told(row.batch)}: callback {row.event} of round {row.round} is {row.status}: {row.error[:100]}"


def callbacks_come_after_the_jobs(e: Evidence) -> Iterator[str]:
    ended = {(batch, round_): at for at, batch, round_, _ in e.history.ends}
    for run in e.runs:
        row = e.rows.get(run.job)
        if row and row.event in ("success", "finish"):
            at = ended.get((row.batch, row.round))
            if at is None or run.started < at - SLACK:
                yield f"{e.told(row.batch)}: {_run(run)} began before the batch had ended"


def _run(run: Run) -> str:
    return f"run {run.job}-{run.dispatch} {run.event} (pid {run.pid}, {run.started:.3f} to {run.finished or 0:.3f})"


ALL = [
    nothing_outstanding, acknowledged_batches_are_there, succeeded_means_finished, finished_means_succeeded,
    finished_is_not_repeated, succeeded_is_not_started_again, ended_once_per_round, attempts_were_runs,
    without_faults_runs_are_attempts, events_are_told_once, callbacks_ran, callbacks_come_after_the_jobs,
]  # fmt: skip


def judge(evidence: Evidence) -> list[str]:
    checks = [*ALL, *trees.ALL]
    return [f"{check.__name__}: {violation}" for check in checks for violation in check(evidence)]
