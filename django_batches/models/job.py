"""BatchJob: one job of a batch, or one callback."""

import json
from collections.abc import Callable
from typing import Any, ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .. import database
from ..database.uuid7 import uuid7
from ..exceptions import BatchError
from ..states import IN_FLIGHT, JOB_ENDED, WAITING_HERE, Event, JobStatus
from ..transitions import cancelling, retrying
from ..transport.client import Keys
from .decorators import alters_data, twin
from .querysets import BatchJobQuerySet


@alters_data
class BatchJob(models.Model):
    """One job of a batch, or one callback. This row decides; RQ has only a copy while the job is in flight."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    batch = models.ForeignKey("Batch", models.DO_NOTHING, null=True, related_name="jobs", db_index=False)
    callback_of = models.ForeignKey("Batch", models.DO_NOTHING, null=True, related_name="callbacks", db_index=False)
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
        _("status"), max_length=9, choices=JobStatus.choices, default=JobStatus.CREATED, db_default=JobStatus.CREATED
    )
    dispatch = models.PositiveIntegerField(_("dispatch"), default=0, db_default=0)
    """The number of the latest dispatch. An outcome that carries an older number changes nothing."""
    attempts = models.PositiveIntegerField(_("attempts"), default=0, db_default=0)
    losses = models.PositiveIntegerField(_("losses"), default=0, db_default=0)
    """How many runs since the last retry ended without a result: killed, lost, or the function was not found."""

    waited_at = models.DateTimeField(null=True, editable=False)
    """When the function returned and the job began to wait for its child batches. A retry then retries those."""
    # Without an index, which would cost two more writes for each job.
    returned_batch = models.ForeignKey(
        "Batch", models.DO_NOTHING, null=True, db_constraint=False, db_index=False, related_name="+", editable=False
    )
    """The child batch that the function returned. Its result becomes the result of the job."""

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
        app_label = "django_batches"
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
            # coordinator: queues and batches with jobs to claim, and these jobs in order
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
            # coordinator: due jobs; cancel: the scheduled jobs of a batch
            models.Index(fields=["due_at"], name="job_scheduled", condition=Q(status=JobStatus.SCHEDULED)),
            # cancel, attempted: the jobs of a batch that are not in RQ, in order
            models.Index(fields=["batch", "position"], name="job_waiting_here", condition=Q(status__in=WAITING_HERE)),
            # reconcile: the jobs that should be in RQ
            models.Index(fields=["id"], name="job_in_flight", condition=Q(status__in=IN_FLIGHT)),
            # retry, admin: the failed jobs of a batch in order
            models.Index(
                fields=["batch", "position"],
                name="job_to_retry",
                condition=Q(status__in=[JobStatus.FAILED, JobStatus.CANCELLED]),
            ),
            # admin: the failed jobs of one exception and place; all failed jobs of a batch with many cancelled ones
            models.Index(
                fields=["batch", "fingerprint", "position"],
                name="job_of_failure_group",
                condition=Q(status=JobStatus.FAILED),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.func} #{self.position}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("A job cannot be saved: call batch.enqueue(...), job.retry() or job.cancel().")

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise TypeError("A job cannot be deleted, because its batch counts it: delete the batch.")

    @property
    def args(self) -> list[Any]:
        return list(json.loads(self.arguments)[0])

    @property
    def kwargs(self) -> dict[str, Any]:
        return dict(json.loads(self.arguments)[1])

    @property
    def result(self) -> Any:
        """The return value of the function; None until the job has succeeded."""
        return json.loads(self.result_text) if self.result_text else None

    @property
    def has_ended(self) -> bool:
        return self.status in JOB_ENDED

    @property
    def rq_id(self) -> str:
        """The id of the RQ job, for RQ's `send_stop_job_command`; empty unless the job is queued or running."""
        return Keys().rq_id(self.pk, self.dispatch) if self.status in IN_FLIGHT else ""

    @property
    def owner_id(self) -> Any:
        """The key of the batch to which this job or callback belongs."""
        return self.batch_id or self.callback_of_id

    def retry(self) -> bool:
        """Runs a failed or cancelled job again; False if it is neither. Raises as `Batch.retry_failed` does."""
        return self._refreshed(lambda: bool(retrying.retry_jobs(database.jobs().filter(pk=self.pk))))

    def cancel(self) -> bool:
        """Cancels a job that waits to be dispatched. False if it is in RQ, where it may be running, or has ended.

        Also False if the job waits for child batches: cancel these instead, and it ends with them.
        """
        return self._refreshed(lambda: cancelling.cancel_job(self.pk))

    aretry, acancel = twin(retry), twin(cancel)

    def _refreshed(self, act: Callable[[], bool]) -> bool:
        if self._state.adding:
            raise BatchError("This job is not written before the block ends: retry or cancel it after the block.")
        result = act()
        self.refresh_from_db(using=database.alias())  # not from a replica, which may lag
        return result
