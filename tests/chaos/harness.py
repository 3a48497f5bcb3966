"""A round: stage, load, faults, recovery, end, verdict."""

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
"""MB, less than what a job that hoards takes."""
MARGIN = 60.0
"""Seconds on top of the recovery time: what is left of the load has to be worked off too."""
SETTLE = RECOVERY + MARGIN
SLOW = 15.0
"""Seconds of a recovery that is worth a line."""
CLOSING = 40.0
"""Seconds until the end of a connection that was closed while its host was cut off has come through."""
LOUD = (
    "differ from its rows", "cannot be written and is dropped", "is postponed", "failed with an unexpected error",
    "message that cannot",
    "of the outcome stream",
)  # fmt: skip
"""What must not stand in the log of a batchworker."""


@dataclass
class Result:
    """What came out of a round."""

    seed: int
    seconds: float
    samples: int = 0
    batches: int = 0
    jobs: int = 0
    runs: int = 0
    callbacks: int = 0
    recovery: dict[str, list[float | None]] = field(default_factory=dict)
    """Seconds per kind of fault; None where it had hit nothing."""
    violations: list[str] = field(default_factory=list)
    folder: str = ""


LIVING = "finished_at IS NULL OR open_callbacks > 0 OR is_awaited"
Breaker = Callable[[Stage], Injector | Sweep]


def run(seed: int, seconds: float, breaker: Breaker, keep: bool = False) -> Result:
    """Plays one round; the folder stays where anything was violated."""
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
    with noted(built, injector):
        injector.run(seconds)
        calm = time.time()
        built.end_load()
        wait_for_recovery(built, SETTLE)
        built.end_hosts()
    sampler.stop()
    with built.postgres.connect() as connection:
        sampler.look(connection, "true")
        evidence = gather(built, connection, injector.injected)
    tell_silences(evidence)
    violations = [
        *judge(evidence),
        *built.violations,
        *sampler.violations,
        *hygiene(built, clients, evidence),
        *loud(built, injector.injected),
    ]
    if not evidence.runs:
        violations.append("nothing ran, so nothing was shown")
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
def noted(built: Stage, injector: Injector | Sweep) -> Any:
    """Keeps the log of the faults beside the ledger, whatever happens in the block."""
    try:
        yield
    finally:
        (built.folder / "faults").write_text("".join(f"{json.dumps(asdict(each))}\n" for each in injector.injected))


def wait_for_recovery(built: Stage, seconds: float) -> None:
    """Until nothing is outstanding; what is after that many seconds is told by the invariants."""
    deadline = time.monotonic() + seconds
    with built.postgres.connect() as connection:
        # Its creator may have been killed between pause and resume.
        connection.execute("UPDATE django_batches_batch SET is_paused = false WHERE is_paused")
        while time.monotonic() < deadline:
            row = connection.execute(f"SELECT count(*) FROM django_batches_batch WHERE {LIVING}").fetchone()
            if row == (0,) and not endless_jobs(built):
                return
            time.sleep(0.1)


def endless_jobs(built: Stage) -> list[bytes]:
    """Jobs in Redis without an end: a roll-back brings old ones back, which the upkeep then takes away."""
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
        [Child(child.hex, parent.hex, dispatch, untold) for child, parent, dispatch, untold in children],
    )


def recovery_times(evidence: Evidence) -> dict[str, list[float | None]]:
    """From the end of each fault until every job it cut off was back, or else until the next job ended."""
    found: dict[str, list[float | None]] = defaultdict(list)
    ended = [step.at for step in evidence.history.steps if step.new in history.ENDED]
    for fault in evidence.faults:
        hit = [run for run in evidence.runs if evidence.hit(fault, run)]
        moments = [evidence.back(run) for run in hit]
        for run, at in zip(hit, moments, strict=True):
            if at > fault.ended + SLOW:
                steps = [f"{s.at - fault.ended:.1f} {s.new} {s.dispatch}" for s in evidence.history.by_job[run.job]]
                print(f"{at - fault.ended:.1f} s from “{fault.kind}”: {evidence.told(run.batch)} job {run.job} {steps}")
        if fault.kind not in HITTING:
            moments = [next((at for at in ended if at > fault.ended), fault.ended)]
        found[fault.kind].append(max(0.0, max(moments) - fault.ended) if moments else None)
    return dict(found)


def tell_silences(evidence: Evidence) -> None:
    """Prints for how long no job ended at all, while faults were injected."""
    ended = sorted(step.at for step in evidence.history.steps if step.new in history.ENDED)
    for at, after in pairwise(ended):
        if after - at > SLOW and evidence.faults and at < evidence.faults[-1].ended:
            print(f"no job ended for {after - at:.1f} s after {at:.3f}")


def connected(built: Stage) -> tuple[int, int]:
    """Clients of PostgreSQL (without those of the harness) and of Redis."""
    with built.postgres.connect() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND application_name <> 'chaos'"
        ).fetchone()
    assert row
    return row[0], len(built.redis.client.client_list())


def hygiene(built: Stage, before: tuple[int, int], e: Evidence) -> list[str]:
    """Nothing is left behind: no process, no connection, no outcome, no key of ours for ever.

    An outcome that nobody waits for may come after the last coordinator has left: one of a run that was given up, and
    where hosts are cut off one that was told to the database, because the kernel sends again what had been sent to
    Redis before, up to a quarter of a minute later. So may the mark of a batch that has ended.
    """

    def is_awaited(outcome: Outcome) -> bool:
        row = e.rows.get(outcome.job_id.hex)
        if row is None or row.status not in history.ENDED:
            return True
        return not built.network and outcome.dispatch >= row.dispatch

    wrong = [f"process {pid} is left" for pid in built.orphans()]
    built.redis.client.connection_pool.disconnect()  # those of the faults
    deadline = time.monotonic() + CLOSING
    while (after := connected(built)) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    if after != before:
        wrong.append(f"connections (database, Redis): {before} before, {after} afterwards")
    redis = built.redis.client
    for key in redis.scan_iter(count=1000):
        name = key.decode()
        ours = name.startswith(("batches:chaos:", "rq:job:batch-", "rq:execution", "rq:results:batch-"))
        if name == "batches:chaos:outcomes":
            left = [fields[b"o"] for _, fields in redis.xrange(key)]
            if needed := [text for text in left if is_awaited(Outcome.loads(text))]:
                wrong.append(f"{len(needed)} outcomes are left in the stream: {needed[:3]}")
        elif name == "batches:chaos:on_hold":
            if living := [each for each in redis.smembers(key) if e.status_of(each.decode()) not in history.ENDED]:
                wrong.append(f"{living} are held and have not ended")
        elif ours and redis.ttl(key) == -1:
            wrong.append(f"the key {name} has no end")
        elif name.startswith("rq:queue:") and any(b"batch-" in each for each in redis.lrange(key, 0, -1)):
            wrong.append(f"{name} still holds {redis.lrange(key, 0, 3)}")
    return wrong


def loud(built: Stage, faults: list[Fault]) -> list[str]:
    names = names_of_children(built.folder)
    starved = [names[pid] for fault in faults if fault.kind == STARVING for pid in fault.pids if pid in names]
    return [
        f"{path.name}: {line}"
        for path in sorted(built.folder.glob("host*.log"))
        for line in path.read_text(errors="replace").splitlines()
        if any(words in line for words in LOUD)
        and not any(f"{name} failed with an unexpected error" in line for name in starved)
    ]


def log_of_violations(result: Result) -> str:
    """A violation with what is needed to look into it."""
    folder = Path(result.folder)
    lines = ["  faults:"] + [f"    {line}" for line in (folder / "faults").read_text().splitlines()]
    # Last, because that is what is left where a report is cut.
    lines += [f"  {violation}" for violation in result.violations[:40]]
    lines += [f"seed {result.seed}: {len(result.violations)} violations; everything is in {folder}"]
    return "\n".join(lines)
