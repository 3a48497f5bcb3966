"""The results of batches and their jobs, as JSON text: read in pages, or passed on to the job that returned a batch.

Plain SQL for the results of one batch: a queryset takes four times as long, and each callback may read them.
"""

from collections.abc import Iterable, Iterator
from uuid import UUID

from django.db.models import Count, Sum
from django.db.models.functions import Length

from .. import database
from ..conf import settings
from ..states import Event
from .batch_status import registers

PAGE = 2_000  # results that one query reads: constant memory for any number


def pages(batch_id: UUID) -> Iterator[list[str | None]]:
    """The results of the jobs of a batch, in the order added; None for a job without one.

    No server-side cursor: it would live in one session of PostgreSQL, and behind a PgBouncer that pools transactions
    the next page would be requested in another session.
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
    """The results of succeeded batches: that of the first success callback, or the list of the jobs' results.

    Leaves out batches that are being deleted: some of their results are gone.
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
    """Batches whose list of results would exceed MAX_PAYLOAD, each with an error message."""
    limit = settings().MAX_PAYLOAD
    batches = database.batches().filter(pk__in=list(batch_ids)).only("registered_callbacks")
    jobs = database.jobs().filter(batch__in=[batch.pk for batch in batches if not registers(batch, Event.SUCCESS)])
    sizes = jobs.order_by().values("batch_id").annotate(size=Sum(Length("result_text")) + Count("pk"))
    return {
        batch_id: f"The results of its child batch have {size} bytes in all, above MAX_PAYLOAD ({limit}): give it an "
        "on_success callback that returns what is needed of batch.results()."
        for batch_id, size in sizes.filter(size__gt=limit).values_list("batch_id", "size")
    }
