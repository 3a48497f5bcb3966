"""A round: starts the stage and the load, injects faults, waits for the recovery, and checks the promises."""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import django
import psycopg
from django.core.management import call_command
from django.db import connections

from django_batches.transport.outcomes import Outcome

from . import history, ledger
from .evidence import HITTING, STARVING, Child, Evidence, Row
from .faults import Fault
from .history import History
from .injector import Injector
from .invariants import judge
from .sampler import Sampler
from .stage import HOSTS, Stage, names_of_children, new_folder, stage
from .sweep import Sweep
from .worker import RECOVERY

WORKERS = 2
MEMORY = 250
"""MB, less than a hoarding job uses."""
MARGIN = 60.0
"""Seconds in addition to the recovery time, to finish the rest of the load."""
SETTLE = RECOVERY + MARGIN
SLOW = 15.0
"""Seconds from which a recovery is printed."""
CLOSING = 40.0
"""Seconds until the server notices that a connection was closed during a partition."""
ERRORS = (
    "differ from its rows", "cannot be written and is dropped", "is postponed", "failed with an unexpected error",
    "The message of job", "of the outcome stream",
)  # fmt: skip
"""Texts that must not occur in the log of a batchworker."""


@dataclass
class Result:
    """The result of a round."""

    seed: int
    seconds: float
    samples: int = 0
    batches: int = 0
    jobs: int = 0
    runs: int = 0
    callbacks: int = 0
    recovery: dict[str, list[float | None]] = field(default_factory=dict)
    """Seconds per kind of fault; None if it hit nothing."""
    violations: list[str] = field(default_factory=list)
    folder: str = ""


LIVING = "finished_at IS NULL OR open_callbacks > 0 OR is_awaited"
Breaker = Callable[[Stage], Injector | Sweep]


def run(seed: int, seconds: float, breaker: Breaker, keep: bool = False) -> Result:
    """Plays one round; keeps its folder if there are violations."""
    folder = new_folder(None)
    with stage(folder, seed) as built:
        result = play(built, seconds, breaker(built))
    if result.violations or keep:
        result.folder = str(folder)
    else:
        shutil.rmtree(folder)
    return result


def play(built: Stage, seconds: float, injector: Injector | Sweep) -> Result:
    django.setup()
    call_command("migrate", verbosity=0)
    connections.close_all()
    with built.postgres.connect() as connection:
        history.install(connection)
    clients = connected(built)
    built.start_hosts(HOSTS, ["tests.chaos.worker", "--workers", str(WORKERS), "--max-memory-per-child", str(MEMORY)])
    built.start_load("tests.chaos.load")
    sampler = Sampler(built.postgres)
    sampler.start()
    with keep_faults(built, injector):
        injector.run(seconds)
        calm = time.time()
        built.end_load()
        wait_for_recovery(built, SETTLE)
        built.end_hosts()
    sampler.stop()
    with built.postgres.connect() as connection:
        sampler.sample(connection, "true")
        evidence = gather(built, connection, injector.injected)
    print_gaps(evidence)
    violations = [
        *judge(evidence),
        *built.violations,
        *sampler.violations,
        *leftovers(built, clients, evidence),
        *logged_errors(built, injector.injected),
    ]
    if not evidence.runs:
        violations.append("no job ran, so the round proves nothing")
    return Result(
        built.seed,
        calm - injector.injected[0].began if injector.injected else seconds,
        sampler.samples,
        len(evidence.batches),
        sum(not row.event for row in evidence.rows.values()),
        len(evidence.runs),
        sum(bool(row.event) for row in evidence.rows.values()),
        recovery_times(evidence),
        violations,
    )


@contextmanager
def keep_faults(built: Stage, injector: Injector | Sweep) -> Any:
    """Writes the log of the faults beside the ledger, even if the block raises."""
    try:
        yield
    finally:
        (built.folder / "faults").write_text("".join(f"{json.dumps(asdict(each))}\n" for each in injector.injected))


def wait_for_recovery(built: Stage, seconds: float) -> None:
    """Waits until everything has ended; after the timeout, the invariants report what has not."""
    deadline = time.monotonic() + seconds
    with built.postgres.connect() as connection:
        # The load may have been killed between pause and resume.
        connection.execute("UPDATE django_batches_batch SET is_paused = false WHERE is_paused")
        while time.monotonic() < deadline:
            row = connection.execute(f"SELECT count(*) FROM django_batches_batch WHERE {LIVING}").fetchone()
            if row == (0,) and not endless_jobs(built):
                return
            time.sleep(0.1)


def endless_jobs(built: Stage) -> list[bytes]:
    """Jobs in Redis without an expiry: a rollback restores old ones, which the reconciler then removes."""
    redis = built.redis.client
    return [key for key in redis.scan_iter("rq:job:batch-*", count=1000) if redis.ttl(key) == -1]


def gather(built: Stage, connection: psycopg.Connection[Any], faults: list[Fault]) -> Evidence:
    jobs = connection.execute(
        "SELECT id, COALESCE(batch_id, callback_of_id), event, position, round, status, dispatch, attempts, losses,"
        " error, error_type, result_text, COALESCE(replace(returned_batch_id::text, '-', ''), '')"
        " FROM django_batches_batchjob"
    )
    batches = connection.execute("SELECT id, description, status, round, total FROM django_batches_batch")
    children = connection.execute(
        "SELECT id, parent_id, parent_dispatch, is_awaited FROM django_batches_batch WHERE parent_id IS NOT NULL"
    )
    path = built.folder / "acknowledged"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return Evidence(
        ledger.read(built.folder),
        faults,
        History(connection),
        {job.hex: Row(job.hex, batch.hex, *rest) for job, batch, *rest in jobs},
        {key.hex: tuple(rest) for key, *rest in batches},  # type: ignore[misc]
        {key: int(count) for key, count in lines},
        [Child(child.hex, parent.hex, dispatch, is_awaited_) for child, parent, dispatch, is_awaited_ in children],
    )


def recovery_times(evidence: Evidence) -> dict[str, list[float | None]]:
    """From the end of each fault until each job that it hit runs again or has ended, or until the next job ends."""
    found: dict[str, list[float | None]] = defaultdict(list)
    ended = [step.at for step in evidence.history.steps if step.new in history.ENDED]
    for fault in evidence.faults:
        hit = [run for run in evidence.runs if evidence.hit(fault, run)]
        moments = [evidence.recovered_at(run) for run in hit]
        for run, at in zip(hit, moments, strict=True):
            if at > fault.ended + SLOW:
                steps = [f"{s.at - fault.ended:.1f} {s.new} {s.dispatch}" for s in evidence.history.by_job[run.job]]
                print(
                    f"{at - fault.ended:.1f} s after “{fault.kind}”: {evidence.name(run.batch)} job {run.job} {steps}"
                )
        if fault.kind not in HITTING:
            moments = [next((at for at in ended if at > fault.ended), fault.ended)]
        found[fault.kind].append(max(0.0, max(moments) - fault.ended) if moments else None)
    return dict(found)


def print_gaps(evidence: Evidence) -> None:
    """Prints long times during the faults in which no job ended."""
    ended = sorted(step.at for step in evidence.history.steps if step.new in history.ENDED)
    for at, after in pairwise(ended):
        if after - at > SLOW and evidence.faults and at < evidence.faults[-1].ended:
            print(f"no job ended for {after - at:.1f} s after {at:.3f}")


def connected(built: Stage) -> tuple[int, int]:
    """The number of clients of PostgreSQL (without the harness) and of Redis."""
    with built.postgres.connect() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND application_name <> 'chaos'"
        ).fetchone()
    assert row
    return row[0], len(built.redis.client.client_list())


def leftovers(built: Stage, before: tuple[int, int], e: Evidence) -> list[str]:
    """Processes, connections, outcomes and keys that a round has left behind.

    An outcome that has no effect may arrive after the last coordinator has exited: that of a lost run, or, after a
    partition, one that was also written to the database, because the kernel resends data to Redis up to 15 seconds
    later. So may the on-hold mark of a batch that has ended.
    """

    def is_awaited(outcome: Outcome) -> bool:
        row = e.rows.get(outcome.job_id.hex)
        if row is None or row.status not in history.ENDED:
            return True
        return not built.network and outcome.dispatch >= row.dispatch

    wrong = [f"process {pid} still runs" for pid in built.orphans()]
    built.redis.client.connection_pool.disconnect()  # the connections of the faults
    deadline = time.monotonic() + CLOSING
    while (after := connected(built)) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    if after != before:
        wrong.append(f"connections (database, Redis): {before} before, {after} after")
    redis = built.redis.client
    for key in redis.scan_iter(count=1000):
        name = key.decode()
        ours = name.startswith(("batches:chaos:", "rq:job:batch-", "rq:execution", "rq:results:batch-"))
        if name == "batches:chaos:outcomes":
            left = [fields[b"o"] for _, fields in redis.xrange(key)]
            if needed := [text for text in left if is_awaited(Outcome.loads(text))]:
                wrong.append(f"{len(needed)} outcomes remain in the stream: {needed[:3]}")
        elif name == "batches:chaos:on_hold":
            if living := [each for each in redis.smembers(key) if e.status_of(each.decode()) not in history.ENDED]:
                wrong.append(f"{living} are on hold and have not ended")
        elif ours and redis.ttl(key) == -1:
            wrong.append(f"the key {name} has no expiry")
        elif name.startswith("rq:queue:") and any(b"batch-" in each for each in redis.lrange(key, 0, -1)):
            wrong.append(f"{name} still contains {redis.lrange(key, 0, 3)}")
    return wrong


def logged_errors(built: Stage, faults: list[Fault]) -> list[str]:
    names = names_of_children(built.folder)
    starved = [names[pid] for fault in faults if fault.kind == STARVING for pid in fault.pids if pid in names]
    return [
        f"{path.name}: {line}"
        for path in sorted(built.folder.glob("host*.log"))
        for line in path.read_text(errors="replace").splitlines()
        if any(words in line for words in ERRORS)
        and not any(f"{name} failed with an unexpected error" in line for name in starved)
    ]


def log_of_violations(result: Result) -> str:
    """The violations, with the faults of the round."""
    folder = Path(result.folder)
    lines = ["  faults:"] + [f"    {line}" for line in (folder / "faults").read_text().splitlines()]
    # Last, because long reports are cut at the beginning.
    lines += [f"  {violation}" for violation in result.violations[:40]]
    lines += [f"seed {result.seed}: {len(result.violations)} violations; everything is in {folder}"]
    return "\n".join(lines)
