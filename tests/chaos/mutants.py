"""Tests of the chaos tests: ten mutations, each in a copy of the tree, which a round must detect.

python -m tests.chaos.mutants [name ...]
"""

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.processes import ROOT

TIMEOUT = 400
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "*.png", "data", "__pycache__", ".*_cache")


@dataclass(frozen=True)
class Mutant:
    """A mechanism to remove, and the round that must then have violations."""

    name: str
    file: str
    before: str
    after: str
    options: str


_FEW = """\
    if batch := _add_few(batch_id, new, registered_callbacks, seal):
        return batch
"""
MUTANTS = [
    Mutant(
        "the rows are not compared with Redis",
        "coordinator/loop.py",
        "        self._reconciler.look()\n",
        "        pass\n",
        "--seconds 15 --pause 2 --only 'Redis restarted empty'",
    ),
    Mutant(
        "leases are not renewed",
        "worker/redis_link.py",
        "self._scripts.renew((child.name, job.rq_id, job.queue) for child, job in self._children.running_jobs())",
        "pass",
        "--seconds 30 --only none",
    ),
    Mutant(
        "executors outlive their supervisor",
        "worker/processes.py",
        "        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)\n",
        "        pass\n",
        "--seconds 10 --pause 1 --only 'supervisor killed'",
    ),
    Mutant(
        "an outcome applies whatever the status of its row",
        "transitions/job_updates.py",
        " AND status IN ({among}) RETURNING",
        " RETURNING",
        "--seconds 20 --points 20 --match 'coordinator: XDEL.*before|executor: EVALSHA.*twice'",
    ),
    Mutant(
        "outcomes are deleted before they are committed",
        "coordinator/record.py",
        "        recorded = applying.record(outcomes, self._lease, claims=claims)",
        "        self._redis.xdel(self._keys.outcomes, *[entry for entry, _ in entries])\n"
        "        recorded = applying.record(outcomes, self._lease, claims=claims)",
        "--seconds 25 --points 20 --match 'coordinator: .*(applying|job_updates|batch_status).*before'",
    ),
    Mutant(
        "an outcome that could not be reported is not reported again",
        "worker/executor.py",
        "                if self._is_orphan():\n                    os._exit(1)\n",
        "                outcome = None\n",
        "--seconds 20 --pause 1 --only 'Redis clients killed'",
    ),
    Mutant(
        "old jobs start without a check of their rows",
        "worker/executor.py",
        "        return taken.pushed_at < self._connected_at + MARGIN or taken.pushed_at < taken.now - STALE\n",
        "        return False\n",
        "--seconds 20 --pause 2 --only 'Redis rolled back to an older dump'",
    ),
    Mutant(
        "Redis accepts pushes of a former coordinator",
        "transport/scripts/push.lua",
        "if token < newest then return -1 end\n",
        "",
        "--seconds 50 --points 60 --match 'coordinator: EVALSHA in transport.scripts.Scripts.push hung'",
    ),
    Mutant(
        "a failure callback is not recorded as scheduled",
        "transitions/batch_status.py",
        "        batch.failure_round = batch.round\n",
        "",
        "--seconds 8 --only none",
    ),
    Mutant(
        "jobs and their count are written in two transactions",
        "transitions/creating.py",
        _FEW + "    with database.atomic():\n        batch = _grow(",
        "    if True:\n        batch = _grow(",
        "--seconds 15 --points 20 --match 'creator: UPDATE in transitions.creating._grow (killed|failed) after'",
    ),
]


def main() -> int:
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or any(word in mutant.name for word in sys.argv[1:])]
    detected = 0
    print("| mutation | detected | seconds |\n|---|---|---:|", flush=True)
    for mutant in chosen:
        begun = time.monotonic()
        words = violations_of(mutant)
        detected += bool(words)
        print(f"| {mutant.name} | {words or '**no**'} | {time.monotonic() - begun:.0f} |", flush=True)
    print(f"\n{detected} of {len(chosen)} detected")
    return 0 if detected == len(chosen) else 1


def violations_of(mutant: Mutant) -> str:
    """The number of violations of the round and an example, or an empty string."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        tree = Path(folder, "tree")
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        apply(mutant, tree / "django_batches" / mutant.file)
        done = subprocess.run(
            f"exec {sys.executable} -m tests.chaos {mutant.options}",
            cwd=tree, env={"PATH": "/usr/bin:/bin:/usr/local/bin", "PYTHONPATH": str(tree)}, shell=True,
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
    report, _, folder = done.stdout.rstrip().rpartition(" violations; everything is in ")
    if not report:
        if done.returncode:
            raise SystemExit(f"The round itself failed:\n{done.stdout}\n{done.stderr}")
        return ""
    shutil.rmtree(folder)
    *_, example, last = report.splitlines()
    return f"{last.rpartition(' ')[2]} violations, such as: {example.strip()[:140]}"


def apply(mutant: Mutant, path: Path) -> None:
    text = path.read_text()
    if (count := text.count(mutant.before)) != 1:
        raise SystemExit(f"{mutant.name}: the text to replace occurs {count} times in {mutant.file}, not once.")
    path.write_text(text.replace(mutant.before, mutant.after))


if __name__ == "__main__":
    sys.exit(main())
