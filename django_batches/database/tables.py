"""The app's tables: their names, their querysets, and transactions on their database."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import Error, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model, QuerySet

if TYPE_CHECKING:
    from ..models import Batch as Batch, BatchJob as BatchJob

BATCH = "django_batches_batch"
JOB = "django_batches_batchjob"
LEASE = "django_batches_lease"

USER_FIELDS = ("description", "metadata")
"""The fields of a batch that user code fills. They may be large, so transitions do not read them."""

_models: dict[str, type[Model]] = {}


def register_models(*models: type[Model]) -> None:
    """Registers the models with this package, which cannot import them."""
    _models.update((model.__name__, model) for model in models)


def alias() -> str:
    """The alias of our tables' database. A transaction on another database neither delays nor undoes a batch."""
    return router.db_for_write(_models["Batch"])


def connection() -> BaseDatabaseWrapper:
    return connections[alias()]


def atomic() -> transaction.Atomic:
    return transaction.atomic(using=alias())


@contextmanager
def single_statement() -> Iterator[None]:
    """Wraps a single statement, which commits by itself: this saves the round trips for BEGIN and COMMIT."""
    wrapper = connection()
    if not wrapper.get_autocommit():
        with atomic():
            yield
        return
    try:
        yield
    except Error:
        wrapper.close_if_unusable_or_obsolete()  # as `atomic` does, to replace a lost connection
        raise


def execute(sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Executes a statement and returns its rows, or an empty list if it returns none."""
    with connection().cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall() if cursor.description else []


def batches() -> "QuerySet[Batch]":
    return related("Batch")


def jobs() -> "QuerySet[BatchJob]":
    return related("BatchJob")


def related(name: str) -> "QuerySet[Any]":
    """Returns a queryset of the named model that bypasses any custom manager."""
    return QuerySet(_models[name], using=alias())
