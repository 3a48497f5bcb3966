"""`show`: the details of one batch."""

import json
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from ...calls.masking import masked_value
from ...models import Batch, BatchJob
from ...monitoring.diagnosis import diagnose
from ...monitoring.finding import Finding
from ...monitoring.formatting import duration, number, pauses
from ...monitoring.progress import snapshots, summary
from ...states import JobStatus
from .base import BATCH_HELP, INDENT, Verb, aligned, counted, cut, find, printable, stamp, titled
from .listing import data
from .relatives import Relatives

MAX_ERROR_LINES, MAX_GROUPS, MAX_CALLBACKS = 3, 10, 30
_LIMITS = ("timeout", "max_attempts", "concurrency", "max_failures", "key", "deadline")
_JOB_FIELDS = (
    "id", "event", "position", "round", "func", "queue", "status", "rq_id", "attempts", "worker", "error_type",
    "error", "started_at", "finished_at",
)  # fmt: skip


class Show(Verb):
    help = "The details of a batch: counts, limits, parents, children, callbacks, failures, why it isn't progressing."

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("batch", help=BATCH_HELP)
        parser.add_argument("--failures", type=int, default=5, metavar="N", help="failed jobs to show (default 5)")

    def run(self, **options: Any) -> bool:
        batch = find(options["batch"])
        snapshot, findings, relatives = snapshots([batch])[str(batch.pk)], diagnose(batch), Relatives(batch)
        by_count = batch.failure_groups.filter(count__gt=0).order_by("-count")
        groups = list(by_count.values("count", "error_type", "sample")[:MAX_GROUPS])
        failed = batch.jobs.filter(status=JobStatus.FAILED).order_by("position")
        failures = list(_light(failed)[: max(0, options["failures"])])
        callbacks = list(_light(batch.callbacks.order_by("-round", "created_at", "event", "position"))[:MAX_CALLBACKS])
        if options["json"]:
            shown = {
                **data(batch, snapshot, findings),
                "limits": {**{name: getattr(batch, name) for name in _LIMITS}, "backoff": json.loads(batch.backoff)},
                "deadline_at": batch.deadline_at,
                "overdue_at": batch.overdue_at,
                **relatives.data(),
                "metadata": masked_value(batch.metadata),
                "callbacks": [_job_data(job) for job in callbacks],
                "failure_groups": groups,
                "first_failures": [_job_data(job) for job in failures],
            }
            self.write_json(shown)
            return True
        self.write(self.style.MIGRATE_HEADING(titled(batch)))
        self._table("", list(self._facts(batch, snapshot["text"], relatives)))
        self._findings(findings)
        self._table("Child batches", relatives.rows())
        self._table("Callbacks", [_callback_row(job) for job in callbacks])
        rows = [[number(group["count"]), group["error_type"], _last_lines(group["sample"], 1)[0]] for group in groups]
        self._table("Failures", rows, right=(0,))
        self._failures(failures)
        return True

    def _facts(self, batch: Batch, text: dict[str, str], relatives: Relatives) -> Iterator[list[str]]:
        yield ["Id", str(batch.pk)]
        status = [self.paint(text["state"], batch.status), text["timing"], text["rate"]]
        yield ["Status", ", ".join(filter(None, status))]
        in_rq = f" ({number(batch.in_flight)} in RQ)" if batch.in_flight else ""
        yield ["Done", f"{text['done']}, {text['percent']}: {summary(batch)}{in_rq}"]
        if relatives.parents:
            yield ["Opened by", relatives.opened_by()]
        if relatives.statuses:
            yield ["Children", relatives.counts()]
        yield ["Queue", printable(batch.queue)]
        yield ["Limits", ", ".join(_limits(batch))]
        if batch.key:
            yield ["Key", printable(batch.key)]
        if batch.round:
            yield ["Round", f"{batch.round} (reopened by retries)"]
        for name in ("created", "sealed", "started", "finished"):
            yield [name.capitalize(), stamp(getattr(batch, f"{name}_at")) or "not yet"]
        if batch.deadline_at:
            yield ["Deadline", f"{stamp(batch.deadline_at)}, {_deadline(batch, batch.deadline_at)}"]
        if batch.reason:
            yield ["Reason", printable(batch.reason)]
        if batch.metadata:
            yield ["Metadata", json.dumps(masked_value(batch.metadata), ensure_ascii=False, sort_keys=True)]

    def _table(self, title: str, rows: list[list[str]], right: tuple[int, ...] = ()) -> None:
        if rows and title:
            self.write_title(title)
        for line in aligned(rows, right):
            self.write(f"{INDENT}{cut(line, self.width - len(INDENT))}")

    def _findings(self, findings: list[Finding]) -> None:
        if findings:
            only_waits = all(finding.level == "info" for finding in findings)
            self.write_title("What it waits for" if only_waits else "Why isn't it progressing?")
        for finding in findings:
            self.write(f"{INDENT}{self.paint(printable(finding.text), finding.level)}")
            if finding.advice:
                self.write(f"{INDENT * 2}{printable(finding.advice)}")

    def _failures(self, failures: list[BatchJob]) -> None:
        if failures:
            self.write_title("First failures")
        for job in failures:
            worker = f" on {printable(job.worker)}" if job.worker else ""
            self.write(f"{INDENT}job {job.position}  {job.func}  {counted(job.attempts, 'attempt')}{worker}")
            for line in _last_lines(job.error or job.error_type, MAX_ERROR_LINES):
                self.write(f"{INDENT * 3}{self.paint(cut(line, self.width - 6), 'error')}")


def _callback_row(job: BatchJob) -> list[str]:
    took = duration((job.finished_at or timezone.now()) - job.started_at) if job.started_at else ""
    of_round = f"round {job.round}" if job.round else ""
    return [job.event, job.func, str(job.status), took, of_round, _last_lines(job.error, 1)[0]]


def _deadline(batch: Batch, deadline: datetime) -> str:
    late = (batch.finished_at or timezone.now()) - deadline
    if batch.finished_at:
        return f"missed by {duration(late)}" if late > timedelta(0) else "met"
    return f"overdue for {duration(late)}" if late >= timedelta(0) else f"in {duration(-late)}"


def _limits(batch: Batch) -> Iterator[str]:
    yield f"timeout {duration(timedelta(seconds=batch.timeout))}"
    yield counted(batch.max_attempts, "attempt")
    if backoff := pauses(json.loads(batch.backoff)):
        yield f"backoff {backoff}"
    for name in ("concurrency", "max_failures"):
        if (limit := getattr(batch, name)) is not None:
            yield f"{name} {number(limit)}"
    if batch.deadline is not None:
        yield f"deadline {duration(timedelta(seconds=batch.deadline))}"


def _light(jobs: Any) -> Any:
    """Leaves out the fields that can hold megabytes. Arguments can also be personal data."""
    return jobs.defer("arguments", "result_text", "traceback")


def _job_data(job: BatchJob) -> dict[str, Any]:
    return {name: getattr(job, name) for name in _JOB_FIELDS}


def _last_lines(error: str, count: int) -> list[str]:
    return [printable(line) for line in error.splitlines() if line.strip()][-count:] or [""]
