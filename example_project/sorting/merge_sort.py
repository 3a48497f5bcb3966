"""Sorting a list in a tree of batches, and what the tree looks like afterwards."""

from dataclasses import dataclass

from django.db.models import Q

from django_batches import Batch
from django_batches.models import BatchJob

from ..trees import tree_of
from .models import Run
from .tasks import sort

MAX_ATTEMPTS = 20
"""Of the first job; the others have theirs in `tasks`. With one failure in three, 20 in a row are 1 in 3.5 billion."""


def sort_in_batch(values: list[int]) -> Batch:
    """Sorts numbers in a tree of batches; returns its first batch at once. `sorted_values` gives the sorted list."""
    with Batch.open(f"Sort {len(values):,} numbers", queue="sorting", max_attempts=MAX_ATTEMPTS) as batch:
        batch.enqueue(sort, values)
    return batch


def sorted_values(batch: Batch) -> list[int]:
    """The sorted list; None until the batch has succeeded."""
    return next(batch.results())


@dataclass(frozen=True)
class Figures:
    """What became of a tree of batches: by its rows, and by the ledger of its runs."""

    batches: int
    succeeded_batches: int
    jobs: int
    """Jobs and callbacks."""
    succeeded_jobs: int
    runs: int
    failed_runs: dict[str, int]
    """By function."""
    repeated_runs: int
    """Runs of jobs that had succeeded before."""


def figures_of(batch: Batch) -> Figures:
    tree = tree_of(batch)
    jobs = BatchJob.objects.filter(Q(batch__in=tree) | Q(callback_of__in=tree))
    status = dict(jobs.order_by().values_list("pk", "status"))
    runs = list(Run.objects.filter(job__in=jobs.values("pk")).values_list("job", "func", "has_succeeded"))
    succeeded = [job for job, _, has_succeeded in runs if has_succeeded]
    failed = [func for _, func, has_succeeded in runs if not has_succeeded]
    return Figures(
        batches=len(tree),
        succeeded_batches=sum(each.status == "succeeded" for each in tree),
        jobs=len(status),
        succeeded_jobs=sum(each == "succeeded" for each in status.values()),
        runs=len(runs),
        failed_runs={func: failed.count(func) for func in ("sort", "merge")},
        repeated_runs=len(succeeded) - len(set(succeeded)),
    )
