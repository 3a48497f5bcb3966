"""Compares django_batches with its peers: the same no-op jobs, on this machine, in one run, in alternating rounds.

    make bench
    python -m example_project.servers --postgres -- python -m benchmarks [--rounds 5] [--only bullmq]

Each contender runs a group of jobs with a callback on two worker processes. The time counts from the first enqueue to
the callback. It prints one table and writes it to docs/benchmarks.md. The peers are installed separately in
build/peers, in the versions that benchmarks/peers pins.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from example_project.processes import exit_on_signals, running

from . import environment, report
from .contend import IDLE, PROCESSES, WARM_UP

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "build" / "peers"
PINNED = ROOT / "benchmarks" / "peers"
LONGEST = 240
"""Maximum number of seconds for one measurement."""
OURS = "django_batches"
SLOW_ROUNDS = 3


@dataclass(frozen=True)
class Contender:
    """A system that runs a group of jobs."""

    name: str
    command: tuple[object, ...]
    how: str
    keeps: str
    """Where the state of a job is kept when it has ended."""
    is_fast: bool = False
    """Runs in every round, also with the larger group."""
    database: bool = True

    def measure(self, jobs: int) -> dict[str, object] | None:
        """Runs it and returns its output; None if it failed or took too long."""
        command = [str(jobs) if part == "JOBS" else part for part in self.command]
        settings = {"NODE_PATH": str(PEERS / "node_modules"), "PYTHONPATH": str(ROOT)}
        if not self.database:
            settings["DATABASE_URL"] = ""
        log = PEERS / "log"
        with (
            log.open("wb") as errors,
            running(command, env=os.environ | settings, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors) as process,
        ):
            try:
                answer, _ = process.communicate(timeout=LONGEST)
                return json.loads(answer.splitlines()[-1])
            except (subprocess.TimeoutExpired, IndexError, ValueError):
                print(f"{self.name}: no answer\n{log.read_text(errors='replace')[-2000:]}", file=sys.stderr)
                return None


def python(program: object, module: str) -> tuple[object, ...]:
    return program, "-m", "benchmarks.contend", f"benchmarks.{module}", "JOBS"


def bullmq(concurrency: int) -> tuple[object, ...]:
    return "node", PINNED / "bullmq_flow.js", "JOBS", concurrency, PROCESSES, WARM_UP, IDLE


PYTHON = PEERS / "venv" / "bin" / "python"
CONTENDERS = [
    Contender(OURS, python(sys.executable, "ours"), "batch, one job at a time", "row, PostgreSQL", is_fast=True),
    Contender(
        f"{OURS}, SQLite", python(sys.executable, "ours"), "batch, one job at a time", "row, SQLite",
        is_fast=True, database=False,
    ),
    Contender("BullMQ, 50 at a time", bullmq(50), "flow, concurrency 50", "Redis", is_fast=True),
    Contender("BullMQ, one at a time", bullmq(1), "flow, concurrency 1", "Redis", is_fast=True),
    Contender("Huey", python(PYTHON, "peers.huey_chord"), "chord", "Redis", is_fast=True),
    Contender("Celery, Redis", python(PYTHON, "peers.celery_chord"), "chord", "Redis"),
    Contender("Dramatiq", python(PYTHON, "peers.dramatiq_group"), "group", "nothing"),
    Contender("RQ, SimpleWorker", python(PYTHON, "peers.rq_simple"), "no batch", "Redis"),
    Contender("django-q2", python(PYTHON, "peers.django_q2"), "async_iter, polled", "cache"),
    Contender("Celery, Django", python(PYTHON, "peers.celery_django"), "chord", "row, PostgreSQL"),
    Contender("RQ, Worker", python(PYTHON, "peers.rq_worker"), "no batch", "Redis"),
]  # fmt: skip


def install() -> None:
    """Installs the peers unless the pinned versions are installed already."""
    stamp = PEERS / "installed"
    pinned = "".join((PINNED / name).read_text() for name in ("requirements.txt", "package.json"))
    if stamp.exists() and stamp.read_text() == pinned:
        return
    PEERS.mkdir(parents=True, exist_ok=True)
    run = lambda *command: subprocess.run([str(part) for part in command], check=True, timeout=900)  # noqa: E731
    run(sys.executable, "-m", "venv", PEERS / "venv")
    run(PYTHON, "-m", "pip", "install", "--quiet", "--requirement", PINNED / "requirements.txt")
    (PEERS / "package.json").write_text((PINNED / "package.json").read_text())
    run("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--prefix", PEERS)
    stamp.write_text(pinned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--jobs",
        type=int,
        nargs="+",
        default=[5_000, 20_000],
        help="sizes of the group; slow contenders run only the first",
    )
    parser.add_argument(
        "--only", nargs="+", help="run only the contenders with these words in their names, and don't write to the docs"
    )
    options = parser.parse_args()
    exit_on_signals()
    install()
    chosen = [c for c in CONTENDERS if not options.only or any(part.lower() in c.name.lower() for part in options.only)]
    found, versions = run(chosen, options.rounds, options.jobs)
    text = shown(chosen, found, options.jobs)
    if options.only:
        print(text)
        return
    facts = [
        *environment.described(),
        ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        f"{PROCESSES} worker processes each, on the same machine as the servers and the creator; {WARM_UP} jobs and "
        f"{IDLE:.0f} s of idle time before each measurement; medians of {options.rounds} alternating rounds "
        f"({SLOW_ROUNDS} for the slow ones)",
    ]
    report.write("No-op jobs, from the first enqueue to the callback", "make bench", facts, text)


Found = dict[tuple[str, int], list[float]]


def run(chosen: Sequence[Contender], rounds: int, sizes: Sequence[int]) -> tuple[Found, dict[str, str]]:
    """Returns the jobs per second of each contender and size, and the versions of all packages."""
    found: Found = defaultdict(list)
    versions: dict[str, str] = {}
    for number in range(rounds):
        for jobs in sizes:
            for contender in chosen:
                if not contender.is_fast and (jobs != sizes[0] or number >= SLOW_ROUNDS):
                    continue
                if answer := contender.measure(jobs):
                    found[contender.name, jobs].append(answer["jobs_per_second"])
                    versions |= answer["versions"]
                    rate = answer["jobs_per_second"]
                    print(f"round {number + 1}: {contender.name}, {jobs:,} jobs: {rate:,.0f} jobs/s", file=sys.stderr)
    return found, versions


def shown(chosen: Sequence[Contender], found: Found, sizes: Sequence[int]) -> str:
    """Returns the table: median, minimum and maximum, and the median of the ratios per round."""
    lines = []
    for contender in chosen:
        line: list[object] = [contender.name, contender.how, contender.keeps]
        for jobs in sizes:
            rates, ours = found[contender.name, jobs], found[OURS, jobs]
            if not rates:
                line += ["-", "-", "-"]
                continue
            ratios = [mine / theirs for mine, theirs in zip(ours, rates, strict=False)]
            ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
            line += [f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}", ratio]
        lines.append(line)
    head = ["", "how", "job state is kept in"]
    for jobs in sizes:
        head += [f"{jobs:,} jobs: jobs/s", "min to max", "ours ÷ its"]
    return report.table(head, lines)


if __name__ == "__main__":
    main()
