"""The long run: rounds one after the other, and the table of what came out: `make chaos MINUTES=60`.

The page is written anew after each round, so a run that is ended early has its table too.
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
"""One round in so many is one of the naive way."""
NETWORK_EVERY = 2
"""One round in so many has its hosts in network namespaces, and cuts them off too."""
FSYNC_EVERY = 3
"""One round in so many has a PostgreSQL that writes to the disk at each commit."""
ROUND = 400
"""Seconds after which a round that does not end is given up."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--faults", type=int, default=0, help="end after so many faults (default: no limit)")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--seconds", type=float, default=150, help="of faults in each round")
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
        print(f"No host will be cut off, network namespaces are not permitted here: {error}", flush=True)
        return False
    return True


def play(module: str, seed: int, options: argparse.Namespace, *extra: str) -> dict[str, Any]:
    """A round in a process of its own; one that does not end in time, or without a result, is a violation."""
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
        f"average. Three batchworkers with two executors each, PostgreSQL (with fsync in one round of "
        f"{FSYNC_EVERY}: processes die here, not the machine), "
        f"{os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        "Leases and polling intervals are shortened, so that a round does not wait for minutes: the lease of a job is "
        f"{worker.LEASE} s instead of 45 s, that of the coordinator 4 s instead of 15 s, and so on "
        "(`tests/chaos/worker.py`).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {total[name]:,} |" for name, label in TOTALS.items()),
        f"| faults | {count(rounds):,} |",
        f"| **violations of any promise** | **{len(violations)}** |",
        "",
        "Each of these counts as a violation: counters that do not add up or differ from the rows in any sample; "
        "anything unfinished after the recovery time; a succeeded job without a finished run; a finished run, hit "
        "by no fault, whose job did not succeed or ran again; a job started after its success; an event reported "
        "twice or not at all in a round; a callback that did not run, or ran before its batch had ended; a missing "
        "batch or job that was acknowledged; a job that ended before its child batches, or with another status or "
        "result than theirs; a child batch whose jobs continued after the run that had opened it was given up; an "
        "orphaned process; a key that never expires; outcomes left in the stream (after a partition: of jobs that "
        "have not ended); connections left open.",
        "",
        *(f"* seed {seed}: {text}" for seed, text in violations[:50]),
        *([""] if violations else []),
        "## Recovery",
        "",
        "Seconds from the end of a fault until every interrupted job runs again or has ended (faults that hit "
        "executors), or until the next job ends (other faults), including other faults in the meantime. *nothing* is "
        "no fault at all, for comparison. If no job was running, no recovery is measured.",
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
        shown = f"{median(known):.1f} | {max(known):.1f}" if known else "- | -"
        lines.append(f"| {kind} | {len(found):,} | {shown} |")
    return lines


def comparison(naive: list[dict[str, Any]]) -> list[str]:
    done = [each for each in naive if "jobs" in each]
    if not done:
        return []
    names = {
        "batches": "batches", "jobs": "jobs", "lost": "jobs lost", "hanging": "batches that hang for ever",
        "miscounted": "batches counted wrongly", "missed": "last callbacks missed",
        "doubled": "last callbacks run twice",
    }  # fmt: skip
    return [
        "## Plain RQ under the same faults",
        "",
        "RQ's own workers, with `on_success` and `on_failure` callbacks that change a counter in the database, as "
        f"`F()` does (`tests/chaos/naive.py`). {len(done)} rounds of the same faults, the same {SETTLE:.0f} s at most "
        f"to recover after the last one, and RQ's leases and maintenance as short as here: {worker.LEASE} s and 3 s.",
        "",
        "| | |",
        "|---|---:|",
        f"| faults | {sum(each['faults'] for each in done):,} |",
        *(f"| {label} | {sum(each[name] for each in done):,} |" for name, label in names.items()),
    ]


def commit() -> str:
    """The commit that was tested, and whether the files are those of the commit."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "django_batches", "tests")
    return f"`{git('rev-parse', '--short=12', 'HEAD')}`{' with changes' if changed else ''}"


if __name__ == "__main__":
    sys.exit(main())
