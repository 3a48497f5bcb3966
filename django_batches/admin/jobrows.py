"""A job as the pages show it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ClassVar

from django.db.models.functions import Left

from ..models import BatchJob
from ..payloads import masked, masked_result
from ..querysets import BatchJobQuerySet
from ..states import WAITING_HERE, JobStatus
from ..wording import duration


@dataclass(frozen=True)
class JobRow:
    """A job with what its row shows."""

    LONGEST: ClassVar[int] = 2_000
    """Characters of arguments and of a result that are shown: they may have megabytes."""

    job: BatchJob
    arguments: str
    result: str
    duration: str
    headline: str
    """The last line of the error, which says most."""

    @property
    def can_retry(self) -> bool:
        return self.job.status in (JobStatus.FAILED, JobStatus.CANCELLED)

    @property
    def can_cancel(self) -> bool:
        return self.job.status in WAITING_HERE

    @classmethod
    def of(cls, job: BatchJob, now: datetime) -> "JobRow":
        """`job` comes from `light`."""
        took = ""
        if job.started_at:
            took = duration((job.finished_at or now) - job.started_at)
        return cls(
            job,
            arguments=_cut(job.shown_arguments, partial(masked, job.func, is_callback=bool(job.event))),  # type: ignore[attr-defined]
            result=_cut(job.shown_result, masked_result),  # type: ignore[attr-defined]
            duration=took,
            headline=next((line for line in job.error.splitlines() if line.strip()), job.error_type),
        )


def light(jobs: "BatchJobQuerySet") -> "BatchJobQuerySet":
    """The jobs without their payloads, and the beginnings of these."""
    found = jobs.defer("arguments", "result_text").annotate(
        shown_arguments=Left("arguments", JobRow.LONGEST + 1), shown_result=Left("result_text", JobRow.LONGEST + 1)
    )
    return found


def _cut(text: str | None, shown: Callable[[str], str]) -> str:
    text = text or ""
    return shown(text) if len(text) <= JobRow.LONGEST else f"{shown(text[: JobRow.LONGEST])}…"
