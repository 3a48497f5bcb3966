"""The second part of the demo: a merge sort whose split and merge service fails one time in three."""

import random
import time

from django.conf import settings
from django.core.management.base import CommandError

from ..showing import Show
from .merge_sort import Figures, figures_of, sort_in_batch, sorted_values


def show_merge_sort(show: Show, count: int) -> None:
    """Sorts `count` numbers in a tree of batches, and checks the tree."""
    values = random.sample(range(10 * count), count)
    show.say(f"Merge sort of {count:,} numbers; split and merge fail {settings.FLAKY_RATE:.0%} of the time ...")
    with show.worker("sorting") as worker:
        begun = time.monotonic()
        batch = sort_in_batch(values)
        show.watch_tree(batch, worker)
        seconds = time.monotonic() - begun
    figures = figures_of(batch)
    is_sorted = batch.status == "succeeded" and sorted_values(batch) == sorted(values)
    for line in lines_of(figures):
        show.say(f"  {line}")
    show.say(f"{'Sorted' if is_sorted else 'Not sorted'} in {seconds:.1f} s.", style="bold")
    if not is_sorted or figures.succeeded_batches < figures.batches or figures.repeated_runs:
        raise CommandError("The merge sort did not keep its promises.")


def lines_of(figures: Figures) -> list[str]:
    failed = figures.failed_runs
    return [
        f"{figures.succeeded_batches:,} of {figures.batches:,} batches succeeded, "
        f"{figures.succeeded_jobs:,} of {figures.jobs:,} jobs and callbacks.",
        f"{figures.runs:,} runs: {failed['sort']:,} failed at the split and {failed['merge']:,} at the merge, and each "
        "was retried alone.",
        f"{figures.repeated_runs} runs of a function that had succeeded before.",
    ]
