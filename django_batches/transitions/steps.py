"""Helpers for steps of the coordinator that process many batches: they limit the time and contain errors."""

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
    """Yields items for `seconds` (default: `TIME_BUDGET`). The next turn has to find the rest again."""
    until = time.monotonic() + (database.TIME_BUDGET if seconds is None else seconds)
    for item in items:
        yield item
        if time.monotonic() >= until:
            return


def level_by_level(find: Callable[[], Iterable[UUID]]) -> Iterator[UUID]:
    """Calls `find` until it returns nothing new, and yields each batch once: a step may make `find` return more."""
    seen: set[UUID] = set()
    while new := set(find()) - seen:
        yield from new
        seen |= new


@contextmanager
def contain_errors(batch_id: UUID) -> Iterator[None]:
    """Logs an error in the step for one batch, so that the other batches still get theirs; the next turn tries again.

    If a CHECK constraint rejected the step because counters differ from their rows, repairs the counters instead.
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
