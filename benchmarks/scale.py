"""Batches of 1,000 to 1,000,000 jobs: time and CPU time per job, and memory.

    python -m example_project.servers --postgres -- python -m benchmarks.scale [--largest N] [--dump]

Budgets: a job of the largest batch costs at most 1.2 times as much as a job of the smallest; Redis uses at most 10 MB
more than idle; the creator uses at most 150 MB; the memory of the coordinator does not grow. Memory is the peak
resident memory of the process. With `--dump`, a snapshot is open all the time, like that of a pg_dump, so that no
vacuum can remove a dead row.
"""

import argparse
from contextlib import nullcontext

from . import environment, report
from .laboratory import Watch, batchworker, dump, peak, processor_seconds, redis, run, tasks

SIZES = (1_000, 10_000, 100_000, 1_000_000)


def memory_of_redis() -> float:
    """MiB."""
    return redis.info("memory")["used_memory"] / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--dump", action="store_true", help="while a snapshot is open")
    options = parser.parse_args()
    lines, smallest = [], 0.0
    with batchworker() as worker, dump() if options.dump else nullcontext():
        for size in (size for size in SIZES if size <= options.largest):
            processes = (worker.coordinator, *worker.executors, "self")
            used = processor_seconds(*processes)
            idle = memory_of_redis()
            with Watch(memory_of_redis, every=0.05) as memory:
                seconds, _ = run(tasks.noop, ((index,) for index in range(size)))
            cost, used = seconds / size, processor_seconds(*processes) - used
            smallest = smallest or cost
            lines.append(
                [
                    f"{size:,}", f"{seconds:.1f}", f"{size / seconds:,.0f}", f"{cost / smallest:.2f}",
                    f"{used / size * 1e6:.0f}", f"{peak():.0f}", f"{peak(worker.coordinator):.0f}",
                    f"{max(map(peak, worker.executors)):.0f}", f"{memory.most - idle:.1f}",
                ]
            )  # fmt: skip
            print(" ".join(lines[-1]), flush=True)
    head = [
        "jobs", "seconds", "jobs/s", "cost per job, ÷ first row", "µs of CPU a job", "creator, MiB",
        "coordinator, MiB", "executor, MiB", "Redis above idle, MiB",
    ]  # fmt: skip
    command = "python -m example_project.servers --postgres -- python -m benchmarks.scale"
    title = f"From 1,000 to {lines[-1][0]} jobs in a batch"
    if options.dump:
        command, title = f"{command} --dump", f"{title}, while a dump is open"
    report.write(title, command, environment.described(), report.table(head, lines))


if __name__ == "__main__":
    main()
