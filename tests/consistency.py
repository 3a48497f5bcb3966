"""The invariants of the rows: after every step, and once everything has ended."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

from django.db import connection
from django.utils import timezone

from django_batches import database
from django_batches.models import Batch, BatchJob, FailureGroup, TimeBucket
from django_batches.states import BATCH_ENDED, IN_FLIGHT, JOB_ENDED
from django_batches.transitions import batch_status, cancelling, children, claiming, deleting, repairing, retrying

EVENTS = ("success", "failure", "finish", "attempted")


@dataclass
class Rows:
    """All rows at one moment, with every column."""

    batches: dict
    jobs: dict

    @classmethod
    def read(cls):
        return cls(all_of(Batch), all_of(BatchJob))

    @cached_property
    def jobs_of(self):
        found = defaultdict(list)
        for job in self.jobs.values():
            found[job.batch_id].append(job)
        return found

    @cached_property
    def callbacks_of(self):
        found = defaultdict(list)
        for job in self.jobs.values():
            found[job.callback_of_id].append(job)
        return found

    @cached_property
    def awaited(self):
        """The runs (job, dispatch) with a child that has not notified them."""
        return {(b.parent_id, b.parent_dispatch) for b in self.batches.values() if b.is_awaited}

    def broken(self):
        """The broken invariants, in words."""
        found = []
        for batch in self.batches.values():
            if batch.deleting_at:
                continue
            found += [f"{name(batch)}: {text}" for text in (*self._counters(batch), *self._end(batch))]
        for job in self.jobs.values():
            found += [f"{name(job)}: {text}" for text in self._job(job)]
        return found

    def unfinished(self):
        """What has not ended."""
        found = [name(b) for b in self.batches.values() if not b.finished_at or b.open_callbacks or b.is_awaited]
        found += [name(b) for b in self.batches.values() if b.retry_position is not None]
        return found + [name(job) for job in self.jobs.values() if job.status not in JOB_ENDED]

    def _counters(self, batch):
        counts = Counter(job.status for job in self.jobs_of[batch.id])
        ended = {status.value: counts[status] for status in JOB_ENDED}
        counted = ended | {
            "total": counts.total(),
            "pending": counts.total() - sum(ended.values()),
            "in_flight": sum(counts[status] for status in IN_FLIGHT),
            "open_callbacks": sum(job.status not in JOB_ENDED for job in self.callbacks_of[batch.id]),
        }
        for counter, value in counted.items():
            if getattr(batch, counter) != value:
                yield f"{counter} is {getattr(batch, counter)}, and {value} by its rows"
        if batch.total != batch.pending + batch.succeeded + batch.failed + batch.cancelled:
            yield "its counters do not add up"
        if batch.concurrency and batch.in_flight > batch.concurrency:
            yield f"{batch.in_flight} jobs in RQ, and concurrency is {batch.concurrency}"

    def _end(self, batch):
        told = Counter(job.event for job in self.callbacks_of[batch.id] if job.round == batch.round)
        registered = Counter(spec["event"] for spec in json.loads(batch.registered_callbacks))
        if not batch.finished_at and not batch.cancelled_at and self._has_left(batch.parent_id, batch.parent_dispatch):
            yield f"it runs on below {name(self.jobs[batch.parent_id])}, which has ended by its children"
        for event, count in told.items():
            if count > registered[event]:
                yield f"{event} was told {count} times, {registered[event]} are registered"
        if batch_status.can_end(batch):
            yield "it can end and has not"
        if not batch.finished_at:
            if batch.status in BATCH_ENDED or told["success"] or told["finish"]:
                yield f"it has not ended, is {batch.status} and has told {dict(told)}"
            return
        if batch.pending or batch.in_flight:
            yield f"it has ended with {batch.pending} pending, {batch.in_flight} in flight"
        if batch.status != (verdict := verdict_of(batch)):
            yield f"it is {batch.status} and should be {verdict}"
        if registered["attempted"] != told["attempted"] and batch.sealed_at:
            yield f"it has ended and told attempted {told['attempted']} times"
        wanted = {"success": registered["success"] * (verdict == "succeeded"), "finish": registered["finish"]}
        if verdict == "failed":
            wanted["failure"] = registered["failure"]
        for event, count in wanted.items():
            if told[event] != count:
                yield f"it is {batch.status} and has told {event} {told[event]} times, not {count}"

    def _has_left(self, parent, dispatch):
        job = self.jobs.get(parent)
        return job and job.waited_at and job.dispatch == dispatch and job.status in ("failed", "cancelled")

    def _job(self, job):
        if job.status == "waiting" and (job.id, job.dispatch) not in self.awaited:
            yield "it waits, and no child of its run is awaited"
        if job.status == "waiting" and not job.waited_at:
            yield "it waits without waited_at"
        if (job.status in JOB_ENDED) != bool(job.finished_at):
            yield f"it is {job.status} with finished_at {job.finished_at}"
        if job.losses > 3:
            yield f"{job.losses} losses"
        if "could not be written" in job.error:
            yield f"its outcome was refused: {job.error}"


def all_of(model):
    """Plain SQL, because it runs after every step."""
    keys = [field.column for field in model._meta.concrete_fields if field.is_relation or field.primary_key]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {model._meta.db_table} ORDER BY id")
        names = [column[0] for column in cursor.description]
        found = [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]
    for row in found:
        for key in keys:
            setattr(row, key, getattr(row, key) and database.as_uuid(getattr(row, key)))
    return {row.id: row for row in found}


def verdict_of(batch):
    if batch.cancelled_at and "max_failures" not in batch.reason:
        return "cancelled"
    return "failed" if batch.failed or batch.cancelled else "succeeded"


def name(row):
    if hasattr(row, "description"):
        return f"batch {row.description} ({row.status}, round {row.round})"
    what = row.event or f"job {row.position}"
    owner = Batch.objects.get(pk=row.batch_id or row.callback_of_id).description
    return f"{what} of {owner} ({row.status}, dispatch {row.dispatch})"


def aggregates_broken():
    """Where the aggregates of the admin differ from the counters."""
    groups, buckets = Counter(), Counter()
    for batch_id, count in FailureGroup.objects.values_list("batch_id", "count"):
        groups[batch_id] += count
    for batch_id, count in TimeBucket.objects.values_list("batch_id", "succeeded"):
        buckets[batch_id] += count
    return [
        f"{name(batch)}: {batch.failed} failed and {groups[batch.id]} by group, {batch.succeeded} succeeded and"
        f" {buckets[batch.id]} by time"
        for batch in Batch.objects.filter(finished_at__isnull=False)
        if (batch.failed, batch.succeeded) != (groups[batch.pk], buckets[batch.pk])
    ]


def drift():
    return {pk: found for pk in Batch.objects.values_list("pk", flat=True) if (found := repairing.drift(pk))}


def coordinator_turn():
    """The steps of a coordinator's turn, except claims and outcomes."""
    claiming.promote_due(timezone.now)
    cancelling.continue_cancels()
    children.cancel_orphans()
    children.cancel_children()
    retrying.continue_retries()
    while children.notify_parents():
        pass
    deleting.continue_deletions()
