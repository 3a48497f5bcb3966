"""Sorts a list in a tree of batches, and collects figures about the tree."""

from dataclasses import dataclass

from django.db.models import Q

from django_batches import Batch
from django_batches.models import BatchJob

from ..trees import tree_of
from .models import Run
from .tasks import sort

MAX_ATTEMPTS = 20
"""Attempts of the first job; `tasks` sets those of the others. If one call in three fails, 20 failures in a row have a
probability of 1 in 3.5 billion."""


def sort_in_batch(values: list[int]) -> Batch:
    """Starts to sort numbers in a tree of batches; returns its topmost batch. `sorted_values` returns the result."""
    with Batch.open(f"Sort {len(values):,} numbers", queue="sorting", max_attempts=MAX_ATTEMPTS) as batch:
        batch.enqueue(sort, values)
    return batch


def sorted_values(batch: Batch) -> list[int]:
    """Returns the sorted list, or None until the batch has succeeded."""
    return next(batch.results())


@dataclass(frozen=True)
class Figures:
    """Figures about a tree of batches, from its rows and from the ledger of its runs."""

    batches: int
    succeeded_batches: int
    jobs: int
    """Jobs and callbacks."""
    succeeded_jobs: int
    runs: int
    failed_runs: dict[str, int]
    """By function."""
    repeated_runs: int
    """Runs of jobs that had already succeeded."""


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
