"""Many batches: thousands of small ones, small ones with a callback, a tree, and a small one behind a huge one.

    python -m example_project.servers --postgres -- python -m benchmarks.many [--batches 100000] [--with-callback 20000]

Each case is compared with one large batch. Budget: a job or callback of the batches with a callback, and of the tree,
costs at most twice as much. The last part measures fairness: a huge batch fills the queue with jobs of 5 ms, and a
batch of ten jobs is created on the same queue. Budget: its first job starts within a second.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

from django.db.models import F, Min

from . import environment, report
from .contend import DONE
from .laboratory import Batch, BatchJob, batchworker, has_ended, peak, redis, run, tasks, wait_until

LARGE = 20_000
"""Number of jobs in the batch that the others are compared with."""
NUMBERS = 4_096
HUGE = 20_000
SMALL = 10
ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=100_000, help="number of batches of ten jobs")
    parser.add_argument(
        "--with-callback", type=int, default=20_000, help="number of batches of five jobs and a callback"
    )
    parser.add_argument(
        "--open", type=int, default=1_000, help="number of batches of ten jobs that are open at the same time"
    )
    options = parser.parse_args()
    with batchworker() as worker:
        cost = run(tasks.noop, ((index,) for index in range(LARGE)))[0] / LARGE

        def line(name: str, batches: int, each: int, create: Callable[[], None]) -> list[str]:
            seconds = until_all_have_ended(create)
            count = batches * each
            found = [
                name, f"{batches:,}", f"{seconds:.1f}", f"{batches / seconds:,.0f}", f"{count / seconds:,.0f}",
                f"{seconds / count / cost:.2f}",
            ]  # fmt: skip
            print(" ".join(found), flush=True)
            return found

        lines = [
            line("one large batch", 1, LARGE, lambda: one_by_one(1, LARGE)),
            line("ten jobs", options.batches, 10, lambda: one_by_one(options.batches, 10)),
            line("five jobs and a callback", options.with_callback, 6, lambda: with_callback(options.with_callback)),
            line("ten jobs, all open at once", options.open, 10, lambda: all_open(options.open)),
            line(f"a merge sort of {NUMBERS:,} numbers", NUMBERS, 3, merge_sort),
        ]
        memory = peak(worker.coordinator)
        waits = [wait_of_a_small_batch() for _ in range(ROUNDS)]
    head = [
        "batches of", "batches", "seconds", "batches/s", "jobs and callbacks/s", "cost of one, ÷ in one large batch",
    ]  # fmt: skip
    text = report.table(head, lines)
    text += (
        f"\n\nPeak memory of the coordinator: {memory:.0f} MiB. If a batch of {SMALL} jobs is opened behind a batch of "
        f"{HUGE:,} jobs of 5 ms, its first job starts after {statistics.median(waits):.2f} s (median of {ROUNDS}), "
        f"{max(waits):.2f} s at most."
    )
    command = "python -m example_project.servers --postgres -- python -m benchmarks.many"
    report.write("Many batches", command, environment.described(), text)


def until_all_have_ended(create: Callable[[], None]) -> float:
    """Returns the seconds from the first batch to the end of the last one."""
    begun = time.perf_counter()
    create()
    wait_until(lambda: not Batch.objects.filter(finished_at=None).exists(), timeout=3600)
    return time.perf_counter() - begun


def one_by_one(batches: int, jobs: int) -> None:
    for _ in range(batches):
        with Batch.open("small") as batch:
            batch.map(tasks.noop, range(jobs))


def with_callback(batches: int) -> None:
    """Also waits until the last callback has run."""
    for _ in range(batches):
        with Batch.open("with callback") as batch:
            batch.on_success(tasks.done)
            batch.map(tasks.noop, range(5))
    for _ in range(batches):
        redis.blpop([DONE])


def all_open(batches: int) -> None:
    with ExitStack() as stack:
        for batch in [stack.enter_context(Batch.open("open")) for _ in range(batches)]:
            batch.map(tasks.noop, range(10))


def merge_sort() -> None:
    """Opens a batch for each split: the two halves are its jobs, its callback merges them."""
    numbers = random.Random(1).sample(range(NUMBERS), NUMBERS)
    with Batch.open("sort") as batch:
        batch.enqueue(tasks.sort, numbers)
    wait_until(lambda: has_ended(batch), timeout=600)
    assert list(batch.results()) == [sorted(numbers)]


def wait_of_a_small_batch() -> float:
    """Returns the seconds from its creation to the start of its first job, while a huge batch fills the queue."""
    with Batch.open("huge") as huge:
        huge.starmap(tasks.sleep, ((index, 0.005) for index in range(HUGE)))
    wait_until(lambda: Batch.objects.filter(pk=huge.pk, succeeded__gt=200).exists(), timeout=60)
    with Batch.open("small") as small:
        small.map(tasks.noop, range(SMALL))
    wait_until(lambda: has_ended(small), timeout=60)
    started = BatchJob.objects.filter(batch=small.pk).aggregate(wait=Min(F("started_at") - F("created_at")))["wait"]
    huge.cancel()
    wait_until(lambda: has_ended(huge), timeout=60)
    return float(started.total_seconds())


if __name__ == "__main__":
    main()
