"""The promises that must hold after a round. Each function yields the violations of one promise."""

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
            yield f"{e.name(key)}: still {status}"
    for row in e.rows.values():
        if row.status not in ENDED:
            yield f"{e.name(row.batch)}: job {row.job} {row.event} still {row.status}, dispatch {row.dispatch}"


def acknowledged_batches_exist(e: Evidence) -> Iterator[str]:
    for key, count in e.acknowledged.items():
        if key not in e.batches:
            yield f"batch {key} was acknowledged and is lost"
        elif e.batches[key][3] < count:
            yield f"{e.name(key)}: {count} jobs were acknowledged, but it has {e.batches[key][3]}"


def succeeded_jobs_have_finished_a_run(e: Evidence) -> Iterator[str]:
    for row in e.rows.values():
        if row.status == "succeeded" and not any(run.finished for run in e.runs_of[row.job]):
            yield f"{e.name(row.batch)}: job {row.job} succeeded without a finished run"


def jobs_with_a_finished_run_have_succeeded(e: Evidence) -> Iterator[str]:
    for run in e.runs:
        row = e.rows.get(run.job)
        has_failed = row is not None and row.status != "succeeded" and row.round == e.round_of(run)
        is_by_child = bool(e.bad_children(run.job, run.dispatch))
        if run.finished and row and has_failed and not is_by_child and not e.was_cut_off(run):
            yield f"{e.name(run.batch)}: {_run(run)} finished, and the job is {row.status}: {row.error[:100]}"


def finished_runs_are_not_repeated(e: Evidence) -> Iterator[str]:
    """A job does not run again after a finished run that no fault hit."""
    for runs in e.runs_of.values():
        for run, after in pairwise(runs):
            is_same = e.round_of(run) == e.round_of(after)
            if run.finished and is_same and not e.was_cut_off(run) and not e.was_stopped_before(after):
                yield f"{e.name(run.batch)}: {_run(run)} finished without a fault, but {_run(after)} ran it again"


def succeeded_jobs_do_not_start_again(e: Evidence) -> Iterator[str]:
    for job, steps in e.history.by_job.items():
        for step in steps:
            if step.new == "succeeded":
                for run in e.runs_of.get(job, []):
                    is_late = run.started > step.at + SLACK and not e.was_stopped_before(run)
                    if is_late and not any(s.old in ENDED and s.at > step.at for s in steps):
                        yield f"{e.name(step.batch)}: {_run(run)} began {run.started - step.at:.1f} s after its success"


def jobs_and_batches_end_once_per_round(e: Evidence) -> Iterator[str]:
    for job, steps in e.history.by_job.items():
        for step in steps:
            if step.old in ENDED and step.new not in ("created", "waiting"):
                yield f"{e.name(step.batch)}: job {job} went from {step.old} to {step.new}"
        for (round_, _), count in Counter((s.round, s.event) for s in steps if s.new in ENDED and not s.event).items():
            if count > 1:
                yield f"{e.name(steps[0].batch)}: job {job} ended {count} times in round {round_}"
    for (batch, round_), count in Counter((batch, round_) for _, batch, round_, _ in e.history.ends).items():
        if count > 1:
            yield f"{e.name(batch)}: ended {count} times in round {round_}"


def every_attempt_was_a_run(e: Evidence) -> Iterator[str]:
    """A counted attempt has started, or its executor was killed during it, which counts as a loss too.

    Exceptions: RQ has stopped it, or its executor ran out of memory before it called the function.
    """
    for row in e.rows.values():
        is_more = row.attempts > len(e.runs_of[row.job]) + row.losses
        if is_more and not e.was_changed_in_rq(row) and not e.may_have_starved(row):
            yield f"{e.name(row.batch)}: job {row.job} has {row.attempts} attempts, but {len(e.runs_of[row.job])} runs"


def without_faults_every_run_is_an_attempt(e: Evidence) -> Iterator[str]:
    """Except for a job that was cancelled during its run, when it opened a child."""
    for row in e.rows.values() if not e.faults else ():
        if row.round == 0 and row.status != "cancelled" and row.attempts != len(e.runs_of[row.job]):
            yield f"{e.name(row.batch)}: job {row.job} has {row.attempts} attempts, but {len(e.runs_of[row.job])} runs"


def callbacks_are_scheduled_once(e: Evidence) -> Iterator[str]:
    callbacks = Counter((row.batch, row.round, row.event) for row in e.rows.values() if row.event)
    scheduled: dict[tuple[str, int], set[str]] = defaultdict(set)
    for (batch, round_, event), count in callbacks.items():
        scheduled[batch, round_].add(event)
        if count != 1:
            yield f"{e.name(batch)}: {event} was scheduled {count} times in round {round_}"
    failed = {(s.batch, s.round) for s in e.history.steps if s.new == "failed" and not s.event}
    for _, batch, round_, status in e.history.ends:
        if batch not in e.acknowledged:
            continue  # its creator was killed, possibly before it registered the callbacks
        wanted = {"finish"} | ({"success"} if status == "succeeded" else set())
        wanted |= {"failure"} if status == "failed" or (batch, round_) in failed else set()
        found = scheduled[batch, round_] - {"attempted"}
        if found != wanted or ("attempted" not in scheduled[batch, round_] and status != "cancelled"):
            yield f"{e.name(batch)}: round {round_} ended as {status} and scheduled {sorted(scheduled[batch, round_])}"


def callbacks_ran(e: Evidence) -> Iterator[str]:
    for row in e.rows.values():
        is_excused = row.losses >= 3 or e.bad_children(row.job, row.dispatch) or e.was_changed_in_rq(row)
        if row.event and row.status != "succeeded" and not is_excused:
            yield f"{e.name(row.batch)}: callback {row.event} of round {row.round} is {row.status}: {row.error[:100]}"


def callbacks_run_after_the_batch_has_ended(e: Evidence) -> Iterator[str]:
    ended = {(batch, round_): at for at, batch, round_, _ in e.history.ends}
    for run in e.runs:
        row = e.rows.get(run.job)
        if row and row.event in ("success", "finish"):
            at = ended.get((row.batch, row.round))
            if at is None or run.started < at - SLACK:
                yield f"{e.name(row.batch)}: {_run(run)} began before the batch had ended"


def _run(run: Run) -> str:
    return f"run {run.job}-{run.dispatch} {run.event} (pid {run.pid}, {run.started:.3f} to {run.finished or 0:.3f})"


ALL = [
    nothing_outstanding, acknowledged_batches_exist, succeeded_jobs_have_finished_a_run,
    jobs_with_a_finished_run_have_succeeded, finished_runs_are_not_repeated, succeeded_jobs_do_not_start_again,
    jobs_and_batches_end_once_per_round, every_attempt_was_a_run, without_faults_every_run_is_an_attempt,
    callbacks_are_scheduled_once, callbacks_ran, callbacks_run_after_the_batch_has_ended,
]  # fmt: skip


def judge(evidence: Evidence) -> list[str]:
    checks = [*ALL, *trees.ALL]
    return [f"{check.__name__}: {violation}" for check in checks for violation in check(evidence)]
