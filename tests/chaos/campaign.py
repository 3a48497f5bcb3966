"""Many rounds in sequence, and a page with their results: `make chaos MINUTES=60`.

Rewrites the page after each round, so that a run that is stopped early has its results too.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from tests.processes import ROOT

from . import network, worker
from .harness import SETTLE

NAIVE_EVERY = 10
"""One round in so many is followed by a round of plain RQ."""
NETWORK_EVERY = 2
"""One round in so many runs its hosts in network namespaces, and partitions them too."""
FSYNC_EVERY = 3
"""One round in so many has a PostgreSQL that writes to disk at each commit."""
ROUND = 400
"""Timeout of a round in seconds."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--faults", type=int, default=0, help="stop after so many faults (default: no limit)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first round")
    parser.add_argument("--seconds", type=float, default=150, help="how long each round injects faults")
    parser.add_argument("--pause", type=float, default=0.4, help="mean seconds between two faults")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "chaos.md")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    rounds: list[dict[str, Any]] = []
    naive: list[dict[str, Any]] = []
    seed = options.seed
    is_permitted = has_namespaces()
    while time.monotonic() < deadline and not 0 < options.faults <= count(rounds):
        extra = ["--network"] if is_permitted and len(rounds) % NETWORK_EVERY == 1 else []
        extra += ["--fsync"] if len(rounds) % FSYNC_EVERY == 1 else []
        rounds.append(play("tests.chaos", seed, options, *extra))
        if len(rounds) % NAIVE_EVERY == 1:
            naive.append(play("tests.chaos.naive", seed, options))
        options.page.write_text(page(rounds, naive, options))
        seed += 1
    bad = [each for each in rounds if each["violations"]]
    print(f"{count(rounds)} faults in {len(rounds)} rounds, {len(bad)} with violations; {options.page}")
    return 1 if bad else 0


def has_namespaces() -> bool:
    try:
        network.check()
    except network.NotPermitted as error:
        print(f"No host is partitioned: network namespaces are not permitted here: {error}", flush=True)
        return False
    return True


def play(module: str, seed: int, options: argparse.Namespace, *extra: str) -> dict[str, Any]:
    """Plays a round in a process of its own. A timeout or a missing result is a violation."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result")
        given = ("--seed", seed, "--seconds", options.seconds, "--pause", options.pause, "--json", path, *extra)
        command = [sys.executable, "-m", module, *map(str, given)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=ROUND)
            print(done.stdout.strip(), done.stderr.strip()[-2000:], flush=True)
            return json.loads(path.read_text())
        except (subprocess.TimeoutExpired, OSError) as error:
            print(error, flush=True)
            return {"seed": seed, "violations": [f"the round gave no result: {error}"], "recovery": {}}


def count(rounds: list[dict[str, Any]]) -> int:
    return sum(len(times) for each in rounds for times in each["recovery"].values())


def page(rounds: list[dict[str, Any]], naive: list[dict[str, Any]], options: argparse.Namespace) -> str:
    violations = [(each["seed"], text) for each in rounds for text in each["violations"]]
    total = {name: sum(each.get(name, 0) for each in rounds) for name in TOTALS}
    lines = [
        "# Chaos tests",
        "",
        f"Written by `make chaos`. Commit {commit()}, {time.strftime('%Y-%m-%d')}, seeds {rounds[0]['seed']} to "
        f"{rounds[-1]['seed']}, {len(rounds)} rounds of {options.seconds:.0f} s, a fault every {options.pause} s on "
        f"average. Three batchworkers with two executors each, PostgreSQL (in one round of "
        f"{FSYNC_EVERY} with fsync; elsewhere off, because only processes crash, not the machine), "
        f"{os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        "Leases and intervals are shorter than in production, so that a round need not wait for minutes: the lease of "
        f"a job is {worker.LEASE} s instead of 45 s, that of the coordinator 4 s instead of 15 s, and so on "
        "(`tests/short_times.py`).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {total[name]:,} |" for name, label in TOTALS.items()),
        f"| faults | {count(rounds):,} |",
        f"| **violations of any promise** | **{len(violations)}** |",
        "",
        "Each of these is a violation:",
        "",
        "* counters that do not add up, or differ from the rows, in any sample",
        "* a batch or job that has not ended after the recovery time",
        "* a job that succeeded without a finished run",
        "* a finished run that no fault hit, and whose job did not succeed or ran again",
        "* a job that started after its success",
        "* a callback that was scheduled twice or not at all in a round, did not run, or ran before its batch ended",
        "* an acknowledged batch or job that is lost",
        "* a job that ended before its child batches, or with another status or result than they require",
        "* a child batch whose jobs still started after the run that had opened it was lost",
        "* an orphan process, a Redis key without an expiry, or a connection that remains open",
        "* an outcome that remains in the stream (after a partition: of a job that has not ended)",
        "",
        *(f"* seed {seed}: {text}" for seed, text in violations[:50]),
        *([""] if violations else []),
        "## Recovery",
        "",
        "All times are in seconds, from the end of the fault. For a fault that hits executors, they end when each "
        "job that it interrupted runs again or has ended. For any other fault, they end with the next job. Other "
        "faults may happen during that time. The row *nothing* is for comparison: no fault was injected. A "
        "process that is killed while it runs no job needs no recovery.",
        "",
        "| fault | injected | p50 | max |",
        "|---|---:|---:|---:|",
        *recovery(rounds),
        "",
        *comparison(naive),
    ]
    return "\n".join(lines).rstrip() + "\n"


TOTALS = {
    "batches": "batches", "jobs": "jobs", "callbacks": "callbacks", "runs": "runs of functions",
    "samples": "samples of counters and rows",
}  # fmt: skip


def recovery(rounds: list[dict[str, Any]]) -> list[str]:
    times: dict[str, list[float | None]] = defaultdict(list)
    for each in rounds:
        for kind, seconds in each["recovery"].items():
            times[kind] += seconds
    lines = []
    for kind, found in sorted(times.items(), key=lambda item: -len(item[1])):
        known = [seconds for seconds in found if seconds is not None]
        cells = f"{median(known):.1f} | {max(known):.1f}" if known else "- | -"
        lines.append(f"| {kind} | {len(found):,} | {cells} |")
    return lines


def comparison(naive: list[dict[str, Any]]) -> list[str]:
    done = [each for each in naive if "jobs" in each]
    if not done:
        return []
    names = {
        "batches": "batches", "jobs": "jobs", "lost": "jobs lost", "hanging": "batches that never end",
        "miscounted": "batches with wrong counters", "missed": "missing final callbacks",
        "doubled": "final callbacks called twice",
    }  # fmt: skip
    return [
        "## Plain RQ under the same faults",
        "",
        "RQ's own workers, with `on_success` and `on_failure` callbacks that update a counter in the database with "
        f"`F()` (`tests/chaos/naive.py`). {len(done)} rounds with the same faults and the same {SETTLE:.0f} s to "
        f"recover after the last fault. RQ's leases and maintenance interval are as short as ours: {worker.LEASE} s "
        "and 3 s.",
        "",
        "| | |",
        "|---|---:|",
        f"| faults | {sum(each['faults'] for each in done):,} |",
        *(f"| {label} | {sum(each[name] for each in done):,} |" for name, label in names.items()),
    ]


def commit() -> str:
    """The tested commit, and whether the files differ from it."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "django_batches", "tests")
    return f"`{git('rev-parse', '--short=12', 'HEAD')}`{' with changes' if changed else ''}"


if __name__ == "__main__":
    sys.exit(main())
