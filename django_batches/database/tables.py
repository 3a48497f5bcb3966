"""The tables of the app: their names, rows and transactions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import Error, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model, QuerySet

if TYPE_CHECKING:
    from ..models import Batch as Batch
    from ..models import BatchJob as BatchJob

BATCH = "django_batches_batch"
JOB = "django_batches_batchjob"
LEASE = "django_batches_lease"

USER_FIELDS = ("description", "metadata")
"""The fields of a batch that users write, as large as they like."""

_models: dict[str, type[Model]] = {}


def register_models(*models: type[Model]) -> None:
    """Makes the models known to this wing, which cannot import them."""
    _models.update((model.__name__, model) for model in models)


def alias() -> str:
    """The database of our tables. A transaction on another database neither delays nor undoes a batch."""
    return router.db_for_write(_models["Batch"])


def connection() -> BaseDatabaseWrapper:
    return connections[alias()]


def atomic() -> transaction.Atomic:
    return transaction.atomic(using=alias())


@contextmanager
def single_statement() -> Iterator[None]:
    """Around a single statement: lets it commit by itself, which saves the round trips of BEGIN and COMMIT."""
    wrapper = connection()
    if not wrapper.get_autocommit():
        with atomic():
            yield
        return
    try:
        yield
    except Error:
        wrapper.close_if_unusable_or_obsolete()  # as `atomic` does; otherwise a lost connection would stay lost
        raise


def execute(sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Executes a statement and returns its rows, if it has any."""
    with connection().cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall() if cursor.description else []


def batches() -> "QuerySet[Batch]":
    return related("Batch")


def jobs() -> "QuerySet[BatchJob]":
    return related("BatchJob")


def related(name: str) -> "QuerySet[Any]":
    """The rows of a model, without its custom manager."""
    return QuerySet(_models[name], using=alias())
