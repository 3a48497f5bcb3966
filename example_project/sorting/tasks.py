"""A merge sort in which each step is a separate job. Only failed steps are retried, and no worker waits for another."""

from heapq import merge as merge_sorted

from django_batches import Batch

from .service import flaky, recorded


@flaky
def split(values: list[int]) -> tuple[list[int], list[int]]:
    return values[: len(values) // 2], values[len(values) // 2 :]


@recorded
def sort(values: list[int]) -> "list[int] | Batch":
    if len(values) <= 1:
        return values
    left, right = split(values)
    with Batch.open(f"merge {len(values):,} numbers", max_attempts=20) as batch:
        batch.on_success(merge)
        batch.map(sort, [left, right])
    return batch


@recorded
@flaky
def merge(batch: Batch) -> list[int]:
    left, right = batch.results()
    return list(merge_sorted(left, right))
