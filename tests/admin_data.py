"""Creates batches in any state by writing to the tables, for tests of the pages."""

from datetime import timedelta

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from django_batches import database
from django_batches.database import inserting
from django_batches.database.inserting import NewJob
from django_batches.database.uuid7 import uuid7
from django_batches.models import Batch, BatchJob, FailureGroup, Lease, TimeBucket
from django_batches.transport.outcomes import fingerprint

CHUNK = 20_000
TRACEBACK = 'Traceback (most recent call last):\n  File "shop/tasks.py", line 7, in resize\nValueError: no'


def user_with(*codenames, name=None, **fields):
    """A staff user with only these permissions."""
    name = name or "-".join(codenames) or "nobody"
    user = get_user_model().objects.create_user(name, password=name, is_staff=True, **fields)
    found = Permission.objects.filter(codename__in=codenames)
    assert found.count() == len(codenames)
    user.user_permissions.set(found)
    return user


def batch_of(
    description="Images", *, succeeded=0, failed=0, cancelled=0, running=0, queued=0, created=0, scheduled=0, waiting=0,
    **fields,
):  # fmt: skip
    """A batch with this many jobs of each status, in this order."""
    now = timezone.now()
    counts = {
        "succeeded": succeeded, "failed": failed, "cancelled": cancelled,
        "running": running, "queued": queued, "scheduled": scheduled, "created": created, "waiting": waiting,
    }  # fmt: skip
    total, pending = sum(counts.values()), running + queued + created + scheduled + waiting
    verdict = "failed" if failed or cancelled else "succeeded"
    defaults = {
        "description": description, "queue": "default", "timeout": 180, "total": total, "pending": pending,
        "succeeded": succeeded, "failed": failed, "cancelled": cancelled, "in_flight": running + queued,
        "status": "running" if pending else verdict, "finished_at": None if pending else now,
        "created_at": now - timedelta(minutes=6), "grown_at": now - timedelta(minutes=6),
        "sealed_at": now - timedelta(minutes=6), "started_at": now - timedelta(minutes=5),
    }  # fmt: skip
    batch = Batch(**{**defaults, **fields})
    database.batches().bulk_create([batch])
    batch._state.adding = False
    add_jobs(batch, counts, now)
    return batch


def child_of(opener, description="Child", **options):
    """A child batch opened by a job or callback. It is awaited if the job is waiting."""
    family = {"parent": opener, "parent_dispatch": opener.dispatch, "is_awaited": opener.status == "waiting"}
    return batch_of(description, **{**family, **options})


def chain(depth, **last):
    """Batches of which each waits for the next, the topmost first."""
    batches = [batch_of("level 0", waiting=1)]
    for level in range(1, depth + 1):
        options = {"waiting": 1} if level < depth else last or {"created": 1}
        batches.append(child_of(batches[-1].jobs.get(), f"level {level}", **options))
    return batches


def add_jobs(batch, counts, now):
    position = 0
    for status, count in counts.items():
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            inserting.jobs([new_job(batch, position + index) for index in range(size)])
            position += size
        if count and status != "created":
            jobs = database.jobs().filter(batch=batch, position__range=(position - count, position - 1))
            jobs.update(status=status, **FIELDS[status](now))
    if batch.failed:
        mark = fingerprint("shop.errors.TooLarge", "here")
        FailureGroup.objects.create(
            batch=batch,
            fingerprint=mark,
            error_type="shop.errors.TooLarge",
            sample="TooLarge: 21 MB",
            count=batch.failed,
        )
    if batch.total > batch.pending:
        since = now.replace(second=now.second - now.second % TimeBucket.SECONDS, microsecond=0) - timedelta(minutes=4)
        TimeBucket.objects.create(
            batch=batch, starts_at=since, succeeded=batch.succeeded, failed=batch.failed, cancelled=batch.cancelled
        )


def new_job(batch, position, func="tests.tasks.ok"):
    now = timezone.now()
    arguments = '[[1],{"size":"large"}]'
    return NewJob(
        uuid7(), func, arguments, batch.queue, 180, 1, "0", "[]", now, None, batch_id=batch.pk, position=position
    )  # fmt: skip


def new_callback(batch, event="finish", func="tests.tasks.told", **fields):
    key = uuid7()
    now = timezone.now()
    new = NewJob(
        key, func, "[[],{}]", "default", 180, 1, "0", "[]", now, None,
        callback_of_id=batch.pk, event=event, round=batch.round,
    )  # fmt: skip
    inserting.jobs([new])
    database.jobs().filter(pk=key).update(**fields)
    return BatchJob.objects.get(pk=key)


def failure(now):
    return {
        "attempts": 1, "error_type": "shop.errors.TooLarge", "error": "TooLarge: 21 MB", "traceback": TRACEBACK,
        "fingerprint": fingerprint("shop.errors.TooLarge", "here"), "worker": "host:batch.1",
        "started_at": now - timedelta(seconds=3), "finished_at": now,
    }  # fmt: skip


FIELDS = {
    "succeeded": lambda now: {
        "attempts": 1, "worker": "host:batch.1", "result_text": "1",
        "started_at": now - timedelta(seconds=3), "finished_at": now,
    },
    "failed": failure,
    "cancelled": lambda now: {"finished_at": now},
    "running": lambda now: {"dispatch": 1, "worker": "host:batch.2", "started_at": now - timedelta(seconds=30)},
    "queued": lambda now: {"dispatch": 1},
    "waiting": lambda now: {
        "dispatch": 1, "worker": "host:batch.2", "started_at": now - timedelta(seconds=30), "waited_at": now,
    },
    "scheduled": lambda now: {"due_at": now + timedelta(minutes=9)},
}  # fmt: skip


def batchworker_is_there(seconds=10):
    """Creates the lease of an active coordinator."""
    Lease.objects.update_or_create(
        name="coordinator",
        defaults={"holder": "host", "token": 1, "expires_at": timezone.now() + timedelta(seconds=seconds)},
    )


def analyze():
    """Updates the statistics of the planner, as autovacuum does."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def url(name, batch, *args, **query):
    return reverse(f"admin:django_batches_batch_{name}", args=[batch.pk, *args], query=query or None)


def text_of(response):
    assert response.status_code == 200, response
    return response.content.decode()
