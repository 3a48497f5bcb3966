"""Batches of jobs that take time, or use the database: the share of the executors' time that the jobs get.

python -m example_project.servers --postgres -- python -m benchmarks.durations [--rounds 3]
"""

import argparse
import statistics

from . import environment, report
from .contend import PROCESSES
from .laboratory import Product, batchworker, run, tasks

DURATIONS = {1: 5_000, 10: 1_000, 100: 200}
"""Number of jobs per duration in milliseconds."""
WITH_DATABASE = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    kinds = {
        f"{ms} ms": (tasks.sleep, [(index, ms / 1000) for index in range(count)], PROCESSES * 1000 / ms)
        for ms, count in DURATIONS.items()
    }
    kinds["reads a row and writes it"] = (tasks.use_database, [(index,) for index in range(WITH_DATABASE)], None)
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with batchworker():
        Product.objects.bulk_create(Product(pk=1 + index, name="a product") for index in range(100))
        for _ in range(options.rounds):
            for kind, (func, calls, _) in kinds.items():
                rates[kind].append(len(calls) / run(func, calls)[0])
    lines = []
    for kind, (_, calls, possible) in kinds.items():
        rate = statistics.median(rates[kind])
        share = f"{rate / possible:.0%}" if possible else "-"
        lines.append([kind, f"{len(calls):,}", f"{rate:,.0f}", f"{possible:,.0f}" if possible else "-", share])
    command = "python -m example_project.servers --postgres -- python -m benchmarks.durations"
    head = ["each job", "jobs", "jobs/s", "possible", "share"]
    facts = [*environment.described(), f"{PROCESSES} executors; medians of {options.rounds} alternating rounds"]
    report.write("Jobs that take time", command, facts, report.table(head, lines))


if __name__ == "__main__":
    main()
