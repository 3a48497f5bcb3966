"""A stand-in for a remote service, and a ledger of every run."""

import functools
import random
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from django.conf import settings

from django_batches import current_job

from .models import Run

P = ParamSpec("P")
T = TypeVar("T")


class NoAnswerError(Exception):
    """The service did not answer."""


def flaky(func: Callable[P, T]) -> Callable[P, T]:
    """Makes calls of `func` fail with the probability in the setting FLAKY_RATE (0.0 to 1.0), as calls of a service do.

    `random.seed()` in the same process makes the failures reproducible.
    """

    @functools.wraps(func)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if random.random() < settings.FLAKY_RATE:
            raise NoAnswerError(f"{func.__name__} did not answer.")
        return func(*args, **kwargs)

    return call


def recorded(func: Callable[P, T]) -> Callable[P, T]:
    """Writes each run of a job to the ledger, one row per run, with its success."""

    @functools.wraps(func)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        has_succeeded = False
        try:
            value = func(*args, **kwargs)
            has_succeeded = True
        finally:
            job = current_job()
            if job:
                Run.objects.create(job=job.pk, func=func.__name__, has_succeeded=has_succeeded)
        return value

    return call
