"""The rows: fields, constraints, indexes, what can be read from them, and verbs of a few lines.

Every change of a status or a counter is in `transitions`; everything that adds jobs is in `opening` and `adding`.
"""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any, ClassVar

from asgiref.sync import sync_to_async
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .connection import Keys
from .ids import uuid7
from .options import text
from .pace import eta, pace_of
from .payloads import check_metadata
from .querysets import BatchJobQuerySet, BatchQuerySet
from .states import BATCH_ENDED, IN_FLIGHT, JOB_ENDED, WAITING_HERE, BatchStatus, Event, JobStatus
from .transitions import results, rows
from .verbs import BatchVerbs, JobVerbs


class Batch(BatchVerbs, models.Model):
    """A set of jobs with callbacks. Made by `Batch.open(...)`, changed by its verbs."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    description = models.TextField(_("description"), blank=True, default="")
    metadata = models.JSONField(_("metadata"), blank=True, default=dict, help_text=_("Yours; the app never reads it."))

    status = models.CharField(_("status"), max_length=10, choices=BatchStatus.choices, default=BatchStatus.OPEN)
    round = models.PositiveIntegerField(
        _("round"), default=0, help_text=_("How often it was re-opened by a retry. Callbacks are told once per round.")
    )
    reason = models.TextField(_("reason"), blank=True, default="", help_text=_("Why it was cancelled."))
    is_paused = models.BooleanField(_("paused"), default=False)

    total = models.PositiveIntegerField(_("total"), default=0)
    pending = models.PositiveIntegerField(_("pending"), default=0, help_text=_("Jobs that have not ended."))
    succeeded = models.PositiveIntegerField(_("succeeded"), default=0)
    failed = models.PositiveIntegerField(_("failed"), default=0)
    cancelled = models.PositiveIntegerField(_("cancelled"), default=0)
    in_flight = models.PositiveIntegerField(_("in flight"), default=0, help_text=_("Jobs that are in RQ now."))
    open_callbacks = models.PositiveIntegerField(_("open callbacks"), default=0)

    queue = models.CharField(_("queue"), max_length=100)
    timeout = models.PositiveIntegerField(_("timeout"), help_text=_("Seconds one run of a job may take."))
    max_attempts = models.PositiveIntegerField(_("attempts"), default=1)
    backoff = models.TextField(_("backoff"), default="0", help_text=_("Seconds before the next attempt, as JSON."))
    no_retry = models.TextField(_("no retry after"), default="[]", help_text=_("Exception types, as JSON."))
    concurrency = models.PositiveIntegerField(
        _("concurrency"), null=True, help_text=_("Jobs of it that may be in RQ at a time; empty: the window.")
    )
    max_failures = models.PositiveIntegerField(
        _("failures allowed"), null=True, help_text=_("One more failed job than this, and the others are cancelled.")
    )
    deadline = models.PositiveIntegerField(
        _("deadline"), null=True, help_text=_("Seconds after its creation by which it should have ended.")
    )
    key = models.CharField(
        _("key"), max_length=200, blank=True, default="", help_text=_("Only one batch with it at a time.")
    )
    registered_callbacks = models.TextField(default="[]", editable=False)
    """JSON list of the callbacks registered before the seal; their rows are made when the event happens."""

    parent = models.ForeignKey(
        "BatchJob", models.DO_NOTHING, null=True, db_constraint=False, db_index=False, related_name="children",
        editable=False,
    )  # fmt: skip
    """The job or callback that opened it, and that ends with it."""
    parent_dispatch = models.PositiveIntegerField(null=True, editable=False)
    """The run of the parent that opened it: one that was given up must not get its outcome."""
    is_awaited = models.BooleanField(default=False, editable=False)
    """Its parent has not been told yet how it ended."""

    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    grown_at = models.DateTimeField(_("last job added"), default=timezone.now, editable=False)
    sealed_at = models.DateTimeField(_("sealed"), null=True, editable=False)
    started_at = models.DateTimeField(_("started"), null=True, editable=False)
    cancelled_at = models.DateTimeField(_("cancel asked"), null=True, editable=False)
    finished_at = models.DateTimeField(_("finished"), null=True, editable=False)
    deadline_at = models.DateTimeField(_("due"), null=True, editable=False)
    overdue_at = models.DateTimeField(
        _("overdue"), null=True, editable=False, help_text=_("When it was found to have missed its deadline.")
    )

    first_failure = models.ForeignKey(
        "BatchJob", models.DO_NOTHING, null=True, db_constraint=False, related_name="+", editable=False
    )
    failure_round = models.PositiveIntegerField(null=True, editable=False)
    """The round in which the failure event was told last."""
    attempted_round = models.PositiveIntegerField(null=True, editable=False)
    """The round in which the attempted event was told last."""
    gave_up = models.BooleanField(default=False, editable=False)
    """It cancelled itself in this round, because more jobs failed than it allows."""
    retry_position = models.PositiveIntegerField(null=True, editable=False)
    """A retry of all failed jobs is under way and has come this far. The batch cannot end before it is through."""
    retry_cancelled = models.BooleanField(default=False, editable=False)
    """Whether the retry under way takes cancelled jobs too."""

    objects = BatchQuerySet.as_manager()

    class Meta:
        verbose_name = _("batch")
        verbose_name_plural = _("batches")
        ordering: ClassVar = ["-id"]
        permissions: ClassVar = [
            ("retry_batch", "Can retry failed jobs"),
            ("cancel_batch", "Can cancel, pause, resume and seal batches"),
            ("view_job_arguments", "Can view the arguments and results of jobs"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="batch_counters_add_up",
                condition=Q(total=F("pending") + F("succeeded") + F("failed") + F("cancelled"))
                & Q(pending__gte=0, succeeded__gte=0, failed__gte=0, cancelled__gte=0),
            ),
            models.CheckConstraint(
                name="batch_in_flight_within_pending", condition=Q(in_flight__gte=0, in_flight__lte=F("pending"))
            ),
            models.UniqueConstraint(fields=["key"], name="batch_key_alive", condition=Q(finished_at=None) & ~Q(key="")),
            models.CheckConstraint(name="batch_open_callbacks_positive", condition=Q(open_callbacks__gte=0)),
        ]
        indexes: ClassVar = [
            # coordinator: batches to end, to cancel, to retry, to hold, abandoned ones
            models.Index(fields=["id"], name="batch_not_ended", condition=Q(finished_at=None)),
            # coordinator: retries that are under way
            models.Index(fields=["id"], name="batch_retried", condition=Q(retry_position__isnull=False)),
            # coordinator: deadlines
            models.Index(
                fields=["deadline_at"],
                name="batch_with_deadline",
                condition=Q(deadline_at__isnull=False, overdue_at=None, finished_at=None),
            ),
            # admin, retry, delete: the tree
            models.Index(fields=["parent"], name="batch_of_parent", condition=Q(parent__isnull=False)),
            # coordinator: children whose parent waits for them
            models.Index(fields=["parent"], name="batch_awaited", condition=Q(is_awaited=True)),
            # coordinator: children that have ended, and whose parent is still to be told
            models.Index(
                fields=["parent"],
                name="batch_to_tell",
                condition=Q(is_awaited=True, finished_at__isnull=False, open_callbacks=0, retry_position=None),
            ),
            # prune: the ended ones of a status, the oldest first; metrics, reconcile: what ended lately
            models.Index(
                fields=["status", "finished_at", "id"], name="batch_ended", condition=Q(finished_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return self.description or f"Batch {str(self.pk)[-8:]}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Writes `description` and `metadata` only: a stale object must not overwrite counters or status.

        Raises `TypeError` or `ValueError` for values that `Batch.open` refuses.
        """
        if self._state.adding:
            raise TypeError("A batch is made by Batch.open(...).")
        writable = {"description", "metadata"}
        given = kwargs.pop("update_fields", None)
        written = kwargs["update_fields"] = writable if given is None else writable.intersection(given)
        if "description" in written and not hasattr(self.description, "resolve_expression"):
            self.description = text(self.description, "description")
        if "metadata" in written and not hasattr(self.metadata, "resolve_expression"):
            check_metadata(self.metadata)
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """Deletes an ended batch with its jobs and child batches, in chunks.

        Raises `BatchError` where one of them has not ended or a row of yours points to one of their jobs. Rows of yours
        that point to the batches themselves go with them (`CASCADE`) or keep them (`ProtectedError`,
        `RestrictedError`), as with any model.
        """
        return type(self).objects.filter(pk=self.pk).delete()

    delete.alters_data = True  # type: ignore[attr-defined]

    @property
    def has_ended(self) -> bool:
        return self.status in BATCH_ENDED

    @property
    def is_overdue(self) -> bool:
        """Whether it has missed its deadline in this round: found late by the coordinator, or ended late."""
        return self.overdue_at is not None or bool(
            self.deadline_at and self.finished_at and self.finished_at > self.deadline_at
        )

    @property
    def progress(self) -> float:
        """Ended jobs of all jobs, 0.0 to 1.0."""
        if not self.total:
            return 1.0 if self.has_ended else 0.0
        return (self.total - self.pending) / self.total

    @property
    def is_cancelled(self) -> bool:
        """Whether it has been cancelled; asks the database each time, so that a long job may look."""
        return rows.batches().filter(pk=self.pk, cancelled_at__isnull=False).exists()

    @property
    def throughput(self) -> float:
        """Jobs ended per second over the last minute (0.0 once the batch has ended)."""
        return pace_of(self).per_second

    @property
    def eta(self) -> datetime | None:
        """When it will have ended at the throughput of the last minute, or None where that says nothing."""
        left = eta(self, pace_of(self))
        return None if left is None else timezone.now() + left

    @property
    def result(self) -> Any:
        """What its first `on_success` callback returned, or the list of its jobs' results where it has none.

        None until it has succeeded and that callback too. The list is meant for small batches: see `results()`.
        """
        text = results.of_batches([self.pk]).get(self.pk) if self.status == BatchStatus.SUCCEEDED else None
        return json.loads(text) if text else None

    def results(self) -> Iterator[Any]:
        """One value per job, in the order added, streaming; None for a job without one."""
        return (json.loads(text) if text else None for page in results.pages(self.pk) for text in page)

    async def aresults(self) -> AsyncIterator[Any]:
        """Asynchronous twin of `results`."""
        pages = results.pages(self.pk)
        while page := await sync_to_async(lambda: next(pages, None))():
            for value in page:
                yield json.loads(value) if value else None


class BatchJob(JobVerbs, models.Model):
    """One job of a batch, or one callback. The row is the truth; RQ carries a copy while it is in flight."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    batch = models.ForeignKey(Batch, models.DO_NOTHING, null=True, related_name="jobs", db_index=False)
    callback_of = models.ForeignKey(Batch, models.DO_NOTHING, null=True, related_name="callbacks", db_index=False)
    event = models.CharField(_("event"), max_length=9, choices=Event.choices, blank=True, default="", db_default="")
    position = models.PositiveIntegerField(_("position"))
    round = models.PositiveIntegerField(_("round"), default=0, db_default=0)

    func = models.CharField(_("function"), max_length=255)
    arguments = models.TextField(default="[[],{}]", editable=False)
    queue = models.CharField(_("queue"), max_length=100)
    timeout = models.PositiveIntegerField(_("timeout"))
    max_attempts = models.PositiveIntegerField(default=1, db_default=1)
    backoff = models.TextField(default="0", db_default="0")
    no_retry = models.TextField(default="[]", db_default="[]")

    status = models.CharField(
        _("status"),
        max_length=9,
        choices=JobStatus.choices,
        default=JobStatus.CREATED,
        db_default=JobStatus.CREATED,
    )
    dispatch = models.PositiveIntegerField(_("dispatch"), default=0, db_default=0)
    """+1 each time the row is handed to RQ. An outcome carries it, so that a superseded run cannot count."""
    attempts = models.PositiveIntegerField(_("attempts"), default=0, db_default=0)
    losses = models.PositiveIntegerField(_("losses"), default=0, db_default=0)
    """How often its worker was killed or lost under it since the last retry."""

    waited_at = models.DateTimeField(null=True, editable=False)
    """When its function had returned and it began to wait for its children; a retry then goes to them."""
    returned_batch = models.ForeignKey(
        Batch,
        models.DO_NOTHING,
        null=True,
        db_constraint=False,
        db_index=False,  # each job would pay for it twice
        related_name="+",
        editable=False,
    )
    """The child whose result it takes as its own."""

    result_text = models.TextField(null=True, editable=False)  # noqa: DJ001 (NULL is "no result")
    error_type = models.CharField(_("error type"), max_length=200, blank=True, default="", db_default="")
    error = models.TextField(_("error"), blank=True, default="", db_default="")
    traceback = models.TextField(_("traceback"), blank=True, default="", db_default="")
    fingerprint = models.CharField(max_length=16, blank=True, default="", db_default="", editable=False)
    worker = models.CharField(_("worker"), max_length=200, blank=True, default="", db_default="")

    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    due_at = models.DateTimeField(_("due"), null=True, editable=False)
    started_at = models.DateTimeField(_("started"), null=True, editable=False)
    finished_at = models.DateTimeField(_("finished"), null=True, editable=False)

    objects = BatchJobQuerySet.as_manager()

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        ordering: ClassVar = ["position"]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="job_of_a_batch_or_callback_of_one",
                condition=Q(batch__isnull=False, callback_of__isnull=True, event="")
                | (Q(batch__isnull=True, callback_of__isnull=False) & ~Q(event="")),
            ),
            models.UniqueConstraint(fields=["batch", "position"], name="job_unique_position"),
            models.UniqueConstraint(
                fields=["callback_of", "event", "position", "round"],
                name="callback_once_per_round",
                condition=Q(callback_of__isnull=False),
            ),
        ]
        indexes: ClassVar = [
            # coordinator: queues and batches with jobs to claim, and those jobs in order
            models.Index(
                fields=["queue", "batch", "position"],
                name="job_to_claim",
                condition=Q(status=JobStatus.CREATED, batch__isnull=False),
            ),
            # coordinator: callbacks to claim
            models.Index(
                fields=["id"],
                name="callback_to_claim",
                condition=Q(status=JobStatus.CREATED, callback_of__isnull=False),
            ),
            # coordinator: what is due; cancel: what a batch has scheduled
            models.Index(fields=["due_at"], name="job_scheduled", condition=Q(status=JobStatus.SCHEDULED)),
            # cancel, attempted: what of a batch waits here, in order
            models.Index(fields=["batch", "position"], name="job_waiting_here", condition=Q(status__in=WAITING_HERE)),
            # reconcile: what is in RQ by the books
            models.Index(fields=["id"], name="job_in_flight", condition=Q(status__in=IN_FLIGHT)),
            # retry, admin: the failed jobs of a batch in order
            models.Index(
                fields=["batch", "position"],
                name="job_to_retry",
                condition=Q(status__in=[JobStatus.FAILED, JobStatus.CANCELLED]),
            ),
            # admin: the failed jobs of one exception and place; "failed" alone where most were cancelled
            models.Index(
                fields=["batch", "fingerprint", "position"],
                name="job_of_failure_group",
                condition=Q(status=JobStatus.FAILED),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.func} #{self.position}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("The row of a job is written by its batch: use batch.enqueue(...), job.retry(), job.cancel().")

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise TypeError("Jobs are counted by their batch: delete the batch.")

    @property
    def args(self) -> list[Any]:
        return list(json.loads(self.arguments)[0])

    @property
    def kwargs(self) -> dict[str, Any]:
        return dict(json.loads(self.arguments)[1])

    @property
    def result(self) -> Any:
        """What the function returned; None before it succeeded."""
        return json.loads(self.result_text) if self.result_text else None

    @property
    def has_ended(self) -> bool:
        return self.status in JOB_ENDED

    @property
    def rq_id(self) -> str:
        """Its id in RQ while it is queued or running, as RQ's `send_stop_job_command` takes it; empty otherwise."""
        return Keys().rq_id(self.pk, self.dispatch) if self.status in IN_FLIGHT else ""

    @property
    def owner_id(self) -> Any:
        """The key of its batch, also for a callback."""
        return self.batch_id or self.callback_of_id


class TimeBucket(models.Model):
    """How many jobs of a batch ended in one stretch of ten seconds; written with the outcomes themselves."""

    SECONDS: ClassVar = 10

    batch = models.ForeignKey(Batch, models.DO_NOTHING, related_name="buckets", db_index=False)
    starts_at = models.DateTimeField()
    succeeded = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    cancelled = models.PositiveIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["batch", "starts_at"], name="bucket_unique")]

    def __str__(self) -> str:
        return f"{self.starts_at:%H:%M:%S}"


class FailureGroup(models.Model):
    """How many jobs of a batch have failed for good with the same exception at the same place."""

    batch = models.ForeignKey(Batch, models.DO_NOTHING, related_name="failure_groups", db_index=False)
    fingerprint = models.CharField(max_length=16)
    error_type = models.CharField(max_length=200)
    sample = models.TextField()
    count = models.IntegerField(default=0)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["batch", "fingerprint"], name="failure_group_unique")]

    def __str__(self) -> str:
        return f"{self.error_type} ({self.count})"


class Lease(models.Model):
    """Who keeps the books: one row, judged by the database's clock."""

    name = models.CharField(primary_key=True, max_length=20)
    holder = models.CharField(max_length=200)
    token = models.PositiveBigIntegerField(default=0)
    """+1 with each new holder; everything that the holder writes to Redis carries it."""
    expires_at = models.DateTimeField()
    namespace = models.CharField(max_length=100, default="")
    """The holder's setting NAMESPACE: a process with another one would talk past it."""

    def __str__(self) -> str:
        return f"{self.holder} ({self.token})"
