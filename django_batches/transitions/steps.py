"""How the coordinator works through many batches: in limited time, and past a batch whose step fails."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from uuid import UUID

from django.db import IntegrityError, OperationalError

from .. import database
from ..exceptions import BatchError
from .repairing import repair_counters

T = TypeVar("T")
logger = logging.getLogger("django_batches")


def within_budget(items: Iterable[T], seconds: float | None = None) -> Iterator[T]:
    """Yields the items until the time is up (default: `TIME_BUDGET`); the next turn finds the rest again."""
    until = time.monotonic() + (database.TIME_BUDGET if seconds is None else seconds)
    for item in items:
        yield item
        if time.monotonic() >= until:
            return


def level_by_level(find: Callable[[], Iterable[UUID]]) -> Iterator[UUID]:
    """Yields the batches that `find` returns, then those that it returns once these are done, each batch once."""
    seen: set[UUID] = set()
    while new := set(find()) - seen:
        yield from new
        seen |= new


@contextmanager
def contain_errors(batch_id: UUID) -> Iterator[None]:
    """Logs an error of a step for one batch, so that it does not stop the steps for the others.

    If a CHECK refused the step because the counters differ from the rows, repairs them; the next turn tries again.
    """
    try:
        yield
    except OperationalError as error:
        if not database.dialect().is_lock_timeout(error):
            raise
        logger.warning("A step for batch %s is postponed: another transaction has locked a row.", batch_id)
    except (BatchError, IntegrityError) as error:
        if not isinstance(error, IntegrityError) or not repair_counters(batch_id, skip_locked=True):
            logger.error("A step for batch %s is postponed: %s", batch_id, error)
