"""Batch: its fields, constraints, indexes and properties. Statuses and counters change in `transitions` only."""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any, ClassVar

from asgiref.sync import sync_to_async
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .. import database
from ..calls.arguments import check_metadata
from ..calls.options import text
from ..database.uuid7 import uuid7
from ..states import BATCH_ENDED, BatchStatus
from ..transitions import results
from .querysets import BatchQuerySet
from .throughput_and_eta import eta, throughput_of
from .verbs import BatchVerbs


class Batch(BatchVerbs, models.Model):
    """A group of jobs with callbacks. Create it with `Batch.open(...)`, and change it with its methods."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    description = models.TextField(_("description"), blank=True, default="")
    metadata = models.JSONField(_("metadata"), blank=True, default=dict, help_text=_("Yours; the app never reads it."))

    status = models.CharField(_("status"), max_length=10, choices=BatchStatus.choices, default=BatchStatus.OPEN)
    round = models.PositiveIntegerField(
        _("round"), default=0, help_text=_("How often a retry re-opened it. Callbacks are called once per round.")
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
        _("concurrency"), null=True, help_text=_("Jobs of it that may be in RQ at a time. Empty: no limit of its own.")
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
    """JSON list of the callbacks. Each event adds the rows of its callbacks when it happens."""

    parent = models.ForeignKey(
        "BatchJob", models.DO_NOTHING, null=True, db_constraint=False, db_index=False, related_name="children",
        editable=False,
    )  # fmt: skip
    """The job or callback that opened this batch, and that ends when this batch has ended."""
    parent_dispatch = models.PositiveIntegerField(null=True, editable=False)
    """The dispatch of the parent that opened this batch. Only that run of the parent waits for it."""
    is_awaited = models.BooleanField(default=False, editable=False)
    """Whether the parent still has to be notified of the end of this batch."""

    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    grown_at = models.DateTimeField(_("last job added"), default=timezone.now, editable=False)
    sealed_at = models.DateTimeField(_("sealed"), null=True, editable=False)
    started_at = models.DateTimeField(_("started"), null=True, editable=False)
    cancelled_at = models.DateTimeField(_("cancel requested"), null=True, editable=False)
    finished_at = models.DateTimeField(_("finished"), null=True, editable=False)
    deleting_at = models.DateTimeField(null=True, editable=False)
    """When the deletion of the batch began. Its counters no longer match, because jobs are deleted in chunks."""
    deadline_at = models.DateTimeField(_("due"), null=True, editable=False)
    overdue_at = models.DateTimeField(
        _("overdue"), null=True, editable=False, help_text=_("When the coordinator noticed the missed deadline.")
    )

    first_failure = models.ForeignKey(
        "BatchJob", models.DO_NOTHING, null=True, db_constraint=False, related_name="+", editable=False
    )
    failure_round = models.PositiveIntegerField(null=True, editable=False)
    """The latest round in which the failure event happened."""
    attempted_round = models.PositiveIntegerField(null=True, editable=False)
    """The latest round in which the attempted event happened."""
    gave_up = models.BooleanField(default=False, editable=False)
    """Whether the batch was cancelled in this round because more than `max_failures` jobs failed."""
    retry_position = models.PositiveIntegerField(null=True, editable=False)
    """The position that `retry_failed()` has reached in its jobs. The batch cannot end before this is NULL again."""
    retry_cancelled = models.BooleanField(default=False, editable=False)

    objects = BatchQuerySet.as_manager()

    class Meta:
        app_label = "django_batches"
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
            # Queries with `finished_at=None` rely on this: they must not find a batch that is being deleted.
            models.CheckConstraint(
                name="batch_deleting_has_ended", condition=Q(deleting_at=None) | Q(finished_at__isnull=False)
            ),
        ]
        indexes: ClassVar = [
            # coordinator: batches to end, to cancel, to retry, on hold, abandoned
            models.Index(fields=["id"], name="batch_not_ended", condition=Q(finished_at=None)),
            # coordinator: retries in progress
            models.Index(fields=["id"], name="batch_retried", condition=Q(retry_position__isnull=False)),
            # coordinator, metrics: deletions in progress
            models.Index(fields=["id"], name="batch_deleting", condition=Q(deleting_at__isnull=False)),
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
            # coordinator: ended children whose parent has to be notified
            models.Index(
                fields=["parent"],
                name="batch_to_notify",
                condition=Q(is_awaited=True, finished_at__isnull=False, open_callbacks=0, retry_position=None),
            ),
            # prune: ended batches by status, the oldest first; metrics, reconcile: batches that ended recently
            models.Index(
                fields=["status", "finished_at", "id"], name="batch_ended", condition=Q(finished_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return self.description or f"Batch {str(self.pk)[-8:]}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Writes `description` and `metadata` only, so that a stale object cannot overwrite the status or a counter.

        Raises `TypeError` or `ValueError` for a value that `Batch.open` would refuse.
        """
        if self._state.adding:
            raise TypeError("A new batch cannot be saved: create it with Batch.open(...).")
        writable = set(database.USER_FIELDS)
        given = kwargs.pop("update_fields", None)
        written = kwargs["update_fields"] = writable if given is None else writable.intersection(given)
        if "description" in written and not hasattr(self.description, "resolve_expression"):
            self.description = text(self.description, "description")
        if "metadata" in written and not hasattr(self.metadata, "resolve_expression"):
            check_metadata(self.metadata)
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """Deletes an ended batch with its jobs and child batches, in chunks.

        Raises `BatchError` if one of these batches has not ended, or if a row of your own models references one of
        their jobs. For rows of your models that reference a batch, the `on_delete` of their field applies as usual.
        """
        return type(self).objects.filter(pk=self.pk).delete()

    delete.alters_data = True  # type: ignore[attr-defined]

    @property
    def has_ended(self) -> bool:
        return self.status in BATCH_ENDED

    @property
    def is_overdue(self) -> bool:
        """Whether the batch missed its deadline in this round: it ended too late, or has not ended yet."""
        end = self.finished_at or timezone.now()
        return self.overdue_at is not None or (self.deadline_at is not None and self.deadline_at < end)

    @property
    def progress(self) -> float:
        """The fraction of the jobs that have ended, from 0.0 to 1.0."""
        if not self.total:
            return 1.0 if self.has_ended else 0.0
        return (self.total - self.pending) / self.total

    @property
    def is_cancelled(self) -> bool:
        """Whether the batch was cancelled. Each access queries the database, so that a long job can check it."""
        return database.batches().filter(pk=self.pk, cancelled_at__isnull=False).exists()

    @property
    def throughput(self) -> float:
        """Jobs per second that ended within the last minute; 0.0 once the batch has ended."""
        return throughput_of(self).per_second

    @property
    def eta(self) -> datetime | None:
        """When the batch will end at the throughput of the last minute. None if it cannot be estimated."""
        left = eta(self, throughput_of(self))
        return None if left is None else timezone.now() + left

    @property
    def result(self) -> Any:
        """The result of the first `on_success` callback or, if there is none, the list of the jobs' results.

        None until the batch and that callback have succeeded. If the list would be large, use `results()` instead.
        """
        text = results.of_batches([self.pk]).get(self.pk) if self.status == BatchStatus.SUCCEEDED else None
        return json.loads(text) if text else None

    def results(self) -> Iterator[Any]:
        """Iterates over the results of the jobs, in the order in which they were added. None for a job without one."""
        return (json.loads(text) if text else None for page in results.pages(self.pk) for text in page)

    async def aresults(self) -> AsyncIterator[Any]:
        """Asynchronous twin of `results`."""
        pages = results.pages(self.pk)
        while page := await sync_to_async(lambda: next(pages, None))():
            for value in page:
                yield json.loads(value) if value else None
