"""What the measured batches of django_batches run."""

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
    """Reads a row and writes one."""
    Product.objects.update_or_create(pk=1 + index % 100, defaults={"name": f"product {index}"})


def stamp(index: int) -> float:
    """When it ended."""
    return time.time()


def done(batch: Batch) -> None:
    """Callback: when it started."""
    get_redis_connection("batches").rpush(DONE, repr(time.time()))
