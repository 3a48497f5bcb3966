"""Queries the backlog (outcomes to apply, due rows, unfinished batches) and its lag, for the commands and metrics."""

from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import F
from django.db.models.functions import Coalesce
from redis import Redis

from .. import database
from ..models import Batch
from ..states import IN_FLIGHT, JobStatus
from ..transitions import frontier
from ..transport.client import Keys

OLDEST_BATCHES = 50
"""How many of the oldest batches `oldest_due` searches for the job that has waited longest."""


def stream(redis: Redis) -> tuple[int, float]:
    """Returns the number of outcomes not applied yet, and the age of the oldest in seconds. Raises `RedisError`."""
    pipeline = redis.pipeline(transaction=True)
    pipeline.xlen(Keys().outcomes)
    pipeline.xrange(Keys().outcomes, count=1)
    pipeline.time()
    entries, first, (seconds, microseconds) = pipeline.execute()
    if not first:
        return 0, 0.0
    reported = int(first[0][0].partition(b"-")[0]) / 1_000
    return entries, max(0.0, seconds + microseconds / 1_000_000 - reported)


def overdue(now: datetime, by: timedelta) -> list[tuple[UUID, str]]:
    """Returns (job id, status) of callbacks and scheduled jobs due for longer than `by`; at most 100 of each kind."""
    since = now - by
    callbacks = database.jobs().filter(status=JobStatus.CREATED, callback_of__isnull=False, created_at__lt=since)
    scheduled = database.jobs().filter(status=JobStatus.SCHEDULED, due_at__lt=since)
    queries = [callbacks.order_by("pk"), scheduled.order_by("due_at")]
    return [row for query in queries for row in query.values_list("pk", "status")[:100]]


def still_overdue(rows: list[tuple[UUID, str]]) -> int:
    """Counts the rows from `overdue` that still have the same status."""
    now = dict(database.jobs().filter(pk__in=[pk for pk, _ in rows]).values_list("pk", "status"))
    return sum(now.get(pk) == status for pk, status in rows)


def unfinished(limit: int) -> list[Batch]:
    """Returns the oldest batches that have not ended or have callbacks due or in RQ; at most `limit` of each kind."""
    found = list(database.batches().filter(finished_at=None).order_by("pk")[:limit])
    callbacks = database.jobs().filter(callback_of__isnull=False)
    # Two queries, because no index covers both conditions.
    for statuses in ([JobStatus.CREATED], IN_FLIGHT):
        open_ones = callbacks.filter(status__in=statuses).order_by("pk").values("callback_of")[:limit]
        found += database.batches().filter(pk__in=list(open_ones.values_list("callback_of", flat=True)))
    return sorted({batch.pk: batch for batch in found}.values(), key=lambda batch: batch.pk)


def last_progress(batch: Batch) -> datetime:
    """Returns when a job was last added, started or ended. Ends of jobs are only known to ten seconds."""
    bucket = database.related("TimeBucket").filter(batch=batch).order_by("-starts_at")
    last: datetime | None = bucket.values_list("starts_at", flat=True).first()
    times = [batch.grown_at, batch.started_at, batch.sealed_at, batch.finished_at, last]
    return max(time for time in times if time)


def oldest_due(now: datetime) -> dict[str, float]:
    """Returns how many seconds the oldest due row of each kind has waited since it was added or became due again.

    Jobs of paused batches are not due. The queries only probe indexes: their cost does not grow with the rows.
    """
    callback = database.jobs().filter(status=JobStatus.CREATED, callback_of__isnull=False).order_by("pk")
    scheduled = database.jobs().filter(status=JobStatus.SCHEDULED, due_at__lte=now).order_by("due_at")
    oldest = {
        "callback": callback.values_list(Coalesce("due_at", "created_at"), flat=True).first(),
        "scheduled": scheduled.values_list("due_at", flat=True).first(),
        "job": min(_first_jobs(), default=None),
    }
    return {kind: max(0.0, (now - at).total_seconds()) if at else 0.0 for kind, at in oldest.items()}


def _first_jobs() -> list[datetime]:
    """Returns when the first due job of each of the oldest batches, on each queue, became due."""
    queues = frontier.queues()
    if not queues:
        return []
    alive = database.batches().filter(finished_at=None, is_paused=False, cancelled_at=None, pending__gt=F("in_flight"))
    ids = alive.order_by("pk").values_list("pk", flat=True)[:OLDEST_BATCHES]
    table, params = database.values({"batch": UUID, "queue": str}, [(key, queue) for key in ids for queue in queues])
    found = database.execute(
        f"SELECT (SELECT id FROM {database.JOB} WHERE status = 'created' AND batch_id = v_batch AND queue = v_queue"
        f" ORDER BY position LIMIT 1) FROM {table}",
        params,
    )
    first = database.jobs().filter(pk__in=[database.as_uuid(key) for (key,) in found if key])
    return list(first.values_list(Coalesce("due_at", "created_at"), flat=True))
