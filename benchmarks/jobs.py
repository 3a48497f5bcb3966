"""The jobs and callbacks of the measured batches."""

import heapq
import time

from django_redis import get_redis_connection

from django_batches.models import Batch
from example_project.shop.models import Product

from .contend import DONE


def noop(index: int) -> None:
    """Does nothing, so that only the overhead is measured."""


def sleep(index: int, seconds: float) -> None:
    """Waits, as a job that calls a remote service does."""
    time.sleep(seconds)


def use_database(index: int) -> None:
    """Reads a row and writes it, in two transactions."""
    product = Product.objects.get(pk=1 + index % 100)
    product.name = f"product {index}"
    product.save(update_fields=["name"])


def stamp() -> float:
    """Returns the time of its end."""
    return time.time()


EVERY = 10
MENDED = "benchmark:mended"


def fail_sometimes(index: int) -> None:
    """Fails for every tenth index until the key MENDED exists."""
    if index % EVERY == 0 and not get_redis_connection("batches").exists(MENDED):
        raise ValueError("not mended yet")


def sort(values: list[int]) -> list[int] | Batch:
    """Returns the sorted list, or a batch whose success callback returns it."""
    if len(values) <= 1:
        return values
    middle = len(values) // 2
    with Batch.open("merge") as batch:
        batch.on_success(merge)
        batch.map(sort, [values[:middle], values[middle:]])
    return batch


def merge(batch: Batch) -> list[int]:
    """Callback: merges the two halves."""
    return list(heapq.merge(*batch.results()))


def done(batch: Batch) -> None:
    """Callback: reports that it has started."""
    get_redis_connection("batches").rpush(DONE, 1)


def report_latency(batch: Batch) -> None:
    """Callback: reports how many seconds after the end of the only job it started."""
    started = time.time()
    get_redis_connection("batches").rpush(DONE, repr(started - batch.jobs.get().result))
