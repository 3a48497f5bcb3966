"""Reads results as JSON text: of all jobs of a batch, page by page, and of a batch that a job has returned.

`pages()` uses plain SQL: a queryset takes four times as long, and every callback may read the results.
"""

from collections.abc import Iterable, Iterator
from uuid import UUID

from django.db.models import Count, Sum
from django.db.models.functions import Length

from .. import database
from ..conf import settings
from ..states import Event
from .batch_status import registers

PAGE = 2_000  # results that one query reads, so that memory use does not depend on the number of results


def pages(batch_id: UUID) -> Iterator[list[str | None]]:
    """Yields pages of the results of a batch's jobs, in the order in which the jobs were added; None means no result.

    Uses no server-side cursor: a cursor lives in one PostgreSQL session, and behind PgBouncer with transaction pooling
    the next page could be requested in another session.
    """
    after, key = -1, database.parameter(batch_id)
    while page := database.execute(
        f"SELECT position, result_text FROM {database.JOB}"
        " WHERE batch_id = %s AND position > %s ORDER BY position LIMIT %s",
        [key, after, PAGE],
    ):
        yield [text for _, text in page]
        if len(page) < PAGE:
            return
        after = page[-1][0]


def of_batches(batch_ids: Iterable[UUID]) -> dict[UUID, str | None]:
    """Returns the result of each succeeded batch: that of its first success callback, or else the list of job results.

    Leaves out batches that are being deleted, because some of their results may be gone.
    """
    found = database.batches().filter(pk__in=list(batch_ids), deleting_at=None).only("registered_callbacks", "round")
    rounds = {batch.pk: batch.round for batch in found if registers(batch, Event.SUCCESS)}
    firsts = database.jobs().filter(callback_of__in=list(rounds), event=Event.SUCCESS, position=0)
    of_callbacks = {
        key: text
        for key, number, text in firsts.values_list("callback_of_id", "round", "result_text")
        if key and number == rounds[key]
    }
    lists: dict[UUID, list[str]] = {batch.pk: [] for batch in found if batch.pk not in rounds}
    jobs = database.jobs().filter(batch__in=list(lists)).order_by("batch_id", "position")
    for key, text in jobs.values_list("batch_id", "result_text"):
        lists[key].append(text or "null")
    return of_callbacks | {key: f"[{','.join(texts)}]" for key, texts in lists.items()}


def too_large(batch_ids: Iterable[UUID]) -> dict[UUID, str]:
    """Returns an error message for each batch whose list of results is larger than MAX_PAYLOAD."""
    limit = settings().MAX_PAYLOAD
    batches = database.batches().filter(pk__in=list(batch_ids)).only("registered_callbacks")
    jobs = database.jobs().filter(batch__in=[batch.pk for batch in batches if not registers(batch, Event.SUCCESS)])
    sizes = jobs.order_by().values("batch_id").annotate(size=Sum(Length("result_text")) + Count("pk"))
    return {
        batch_id: f"The results of its child batch are too large: {size} bytes in total, MAX_PAYLOAD is {limit}. Give "
        "the child batch an on_success callback that returns only the needed part of batch.results()."
        for batch_id, size in sizes.filter(size__gt=limit).values_list("batch_id", "size")
    }
