"""The promises for batches that jobs and callbacks have opened."""

import json
from collections.abc import Iterator

from .evidence import Child, Evidence
from .history import ENDED, IN_FLIGHT
from .worker import RECOVERY


def parents_end_after_their_children(e: Evidence) -> Iterator[str]:
    """When a waiting job ended, all its children and their callbacks had ended."""
    for steps in e.history.by_job.values():
        for step in steps:
            if step.old == "waiting" and step.new in ENDED:
                for child in e.children_of.get((step.job, step.dispatch), ()):
                    if wrong := _not_at_rest(e, child, step.at):
                        yield f"{e.name(step.batch)}: job {step.job} ended before its child {child.batch}: {wrong}"


def jobs_with_children_wait(e: Evidence) -> Iterator[str]:
    """A job whose run succeeded and has opened a child goes through `waiting`."""
    for row in e.rows.values():
        if row.status == "succeeded" and (row.job, row.dispatch) in e.children_of:
            steps = [step for step in e.history.by_job[row.job] if step.dispatch == row.dispatch]
            if not any(step.old == "waiting" for step in steps):
                yield f"{e.name(row.batch)}: job {row.job} {row.event} succeeded without waiting for its children"


def statuses_follow_the_children(e: Evidence) -> Iterator[str]:
    for row in e.rows.values():
        bad = e.bad_children(row.job, row.dispatch)
        if row.status == "succeeded" and bad:
            yield f"{e.name(row.batch)}: job {row.job} succeeded, but its child {bad[0].batch} did not"
        if row.error_type == "django_batches.child_failed" and not bad:
            yield f"{e.name(row.batch)}: job {row.job} failed because of a child, but all succeeded: {row.error}"


def results_come_from_the_children(e: Evidence) -> Iterator[str]:
    """A job that returned a batch has the result of its success callback, which names that batch."""
    for row in e.rows.values():
        if row.status == "succeeded" and row.returned:
            result = json.loads(row.result or "null")
            if not isinstance(result, list) or result[0] != row.returned:
                yield f"{e.name(row.batch)}: job {row.job} returned {row.returned}, but its result is {row.result}"


def orphans_are_cancelled(e: Evidence) -> Iterator[str]:
    """The children of a run that was lost or failed are cancelled, and soon none of their jobs starts."""
    for (job, dispatch), children in e.children_of.items():
        given_up = next((s.at for s in e.history.by_job[job] if s.dispatch == dispatch and _gives_up(s)), None)
        for child in children if given_up else ():
            assert given_up is not None
            recovered = e.coordinator_active_from(given_up) + RECOVERY
            late = [run for run in e.runs_of_jobs_of[child.batch] if run.started > recovered]
            if any(not e.was_stopped_before(run) for run in late):
                yield f"{e.name(child.batch)}: its run {job}-{dispatch} was given up, but its jobs still started"
            is_at_rest = not _not_at_rest(e, child, recovered)
            if e.batches[child.batch][1] != "cancelled" and not is_at_rest:
                yield f"{e.name(child.batch)}: its run {job}-{dispatch} was given up, but it was not cancelled"


def every_parent_was_notified(e: Evidence) -> Iterator[str]:
    for child in e.children:
        if child.is_unnotified:
            yield f"{e.name(child.batch)}: its parent {child.parent}-{child.dispatch} was not notified of its end"


def _gives_up(step) -> bool:
    """Whether the run has ended, and its job neither waits for children nor has succeeded."""
    return step.old in IN_FLIGHT and step.new not in ("waiting", "succeeded", *IN_FLIGHT)


def _not_at_rest(e: Evidence, child: Child, at: float) -> str:
    """What had not ended of a child at that time, or an empty string."""
    turns = [turn for turn in e.history.turns_of[child.batch] if turn[0] <= at]
    if not turns or turns[-1][-1] not in ENDED:
        return "it ended later, or was reopened"
    for row in e.callbacks_of[child.batch]:
        if row.round <= turns[-1][2]:
            steps = [step for step in e.history.by_job[row.job] if step.at <= at]
            if not steps or steps[-1].new not in ENDED:
                return f"its callback {row.event} of round {row.round} had not ended"
    return ""


ALL = [
    parents_end_after_their_children, jobs_with_children_wait, statuses_follow_the_children,
    results_come_from_the_children, orphans_are_cancelled, every_parent_was_notified,
]  # fmt: skip
