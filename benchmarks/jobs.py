"""What the measured batches of django_batches run."""

import heapq
import time

from django_redis import get_redis_connection

from django_batches.models import Batch
from example_project.shop.models import Product

from .contend import DONE


def noop(index: int) -> None:
    """Nothing at all: what is measured is the road."""


def sleep(index: int, seconds: float) -> None:
    """Waits, as for somebody else's server."""
    time.sleep(seconds)


def use_database(index: int) -> None:
    """Reads a row and writes it, each in a transaction of its own."""
    product = Product.objects.get(pk=1 + index % 100)
    product.name = f"product {index}"
    product.save(update_fields=["name"])


def stamp() -> float:
    """When it ended."""
    return time.time()


EVERY = 10
MENDED = "benchmark:mended"


def fail_sometimes(index: int) -> None:
    """Fails with every tenth index, until it is mended."""
    if index % EVERY == 0 and not get_redis_connection("batches").exists(MENDED):
        raise ValueError("not mended yet")


def sort(values: list[int]) -> list[int] | Batch:
    """The sorted list, or the batch whose success callback gives it."""
    if len(values) <= 1:
        return values
    middle = len(values) // 2
    with Batch.open("merge") as batch:
        batch.on_success(merge)
        batch.map(sort, [values[:middle], values[middle:]])
    return batch


def merge(batch: Batch) -> list[int]:
    """Callback: the two halves as one list."""
    return list(heapq.merge(*batch.results()))


def done(batch: Batch) -> None:
    """Callback: says that it has started."""
    get_redis_connection("batches").rpush(DONE, 1)


def tell_latency(batch: Batch) -> None:
    """Callback: says how many seconds after the end of the only job it has started."""
    started = time.time()
    get_redis_connection("batches").rpush(DONE, repr(started - batch.jobs.get().result))
