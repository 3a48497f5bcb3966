"""`show`: all about one batch."""

import json
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.utils import timezone

from ...calls.masking import masked_value
from ...models import Batch, BatchJob
from ...monitoring.diagnosis import diagnose
from ...monitoring.finding import Finding
from ...monitoring.formatting import duration, number, pauses
from ...monitoring.progress import snapshots, summary
from ...states import JobStatus
from .listing import data
from .naming import find, titled
from .relatives import Relatives
from .verb import GAP, Verb, add_json, aligned, cut, printable, stamp

LINES = 3
"""Lines of an error that are shown."""
GROUPS = 10


class Show(Verb):
    name = "show"
    help = "All about one batch: counts, limits, parents, children, callbacks, failures, and why it does not move."

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("batch", help="id of a batch, or the end or beginning of one")
        parser.add_argument("--failures", type=int, default=5, metavar="N", help="failed jobs to show (default 5)")
        add_json(parser)

    def run(self, **options: Any) -> bool:
        batch = find(options["batch"])
        told, findings, relatives = snapshots([batch])[str(batch.pk)], diagnose(batch), Relatives.of(batch)
        groups = list(batch.failure_groups.filter(count__gt=0).order_by("-count")[:GROUPS])
        failures = list(_failures(batch)[: max(0, options["failures"])])
        callbacks = list(_light(batch.callbacks.order_by("-round", "created_at", "event", "position"))[:30])
        if options["json"]:
            self.say_json(
                {
                    **data(batch, told, findings),
                    "limits": _limits(batch),
                    "deadline_at": batch.deadline_at,
                    "overdue_at": batch.overdue_at,
                    **relatives.data(),
                    "metadata": masked_value(batch.metadata),
                    "callbacks": [_job_data(job) for job in callbacks],
                    "failure_groups": [
                        {"count": group.count, "error_type": group.error_type, "sample": group.sample}
                        for group in groups
                    ],
                    "first_failures": [_job_data(job) for job in failures],
                }
            )
            return True
        self.say(self.style.MIGRATE_HEADING(titled(batch)))
        self._section("", list(self._facts(batch, told, relatives)))
        self._why(findings)
        self._section("Child batches", relatives.lines())
        self._section("Callbacks", [self._callback(job) for job in callbacks])
        self._section(
            "Failures", [[number(group.count), group.error_type, _error(group.sample, 1)[0]] for group in groups], (0,)
        )
        self._failed(failures)
        return True

    def _facts(self, batch: Batch, told: dict[str, Any], relatives: Relatives) -> Iterator[list[str]]:
        text = told["text"]
        yield ["Id", str(batch.pk)]
        words = [self.paint(text["state"], batch.status), text["timing"], text["rate"]]
        yield ["Status", ", ".join(word for word in words if word)]
        in_rq = f" ({number(batch.in_flight)} in RQ)" if batch.in_flight else ""
        yield ["Done", f"{text['done']}, {text['percent']}: {summary(batch)}{in_rq}"]
        if relatives.above:
            yield ["Opened by", relatives.openers()]
        if relatives.below:
            yield ["Children", relatives.counts()]
        yield ["Queue", printable(batch.queue)]
        yield ["Limits", ", ".join(_limits_in_words(batch))]
        if batch.key:
            yield ["Key", printable(batch.key)]
        if batch.round:
            yield ["Round", f"{batch.round} (re-opened by retries)"]
        for name in ("created", "sealed", "started", "finished"):
            yield [name.capitalize(), stamp(getattr(batch, f"{name}_at")) or "not yet"]
        if batch.deadline_at:
            yield ["Deadline", f"{stamp(batch.deadline_at)}, {_deadline(batch)}"]
        if batch.reason:
            yield ["Reason", printable(batch.reason)]
        if batch.metadata:
            yield ["Metadata", json.dumps(masked_value(batch.metadata), ensure_ascii=False, sort_keys=True)]

    def _section(self, title: str, rows: list[list[str]], right: tuple[int, ...] = ()) -> None:
        if not rows:
            return
        if title:
            self.say()
            self.say(self.style.MIGRATE_LABEL(title))
        for line in aligned(rows, right):
            self.say(f"{GAP}{cut(line, self.width - len(GAP))}")

    def _why(self, findings: list[Finding]) -> None:
        if not findings:
            return
        is_info = all(finding.level == "info" for finding in findings)
        self.say()
        self.say(self.style.MIGRATE_LABEL("What it waits for" if is_info else "Why it does not move"))
        for finding in findings:
            self.say(f"{GAP}{self.paint(printable(finding.text), finding.level)}")
            if finding.advice:
                self.say(f"{GAP * 2}{printable(finding.advice)}")

    def _callback(self, job: BatchJob) -> list[str]:
        took = duration((job.finished_at or timezone.now()) - job.started_at) if job.started_at else ""
        told = f"round {job.round}" if job.round else ""
        return [job.event, job.func, str(job.status), took, told, _error(job.error, 1)[0]]

    def _failed(self, failures: list[BatchJob]) -> None:
        if not failures:
            return
        self.say()
        self.say(self.style.MIGRATE_LABEL("First failures"))
        for job in failures:
            attempts = "1 attempt" if job.attempts == 1 else f"{number(job.attempts)} attempts"
            where = f" on {printable(job.worker)}" if job.worker else ""
            self.say(f"{GAP}job {job.position}  {job.func}  {attempts}{where}")
            for line in _error(job.error or job.error_type, LINES):
                self.say(f"{GAP * 3}{self.paint(cut(line, self.width - 6), 'error')}")


def _deadline(batch: Batch) -> str:
    if batch.deadline_at and batch.finished_at and batch.is_overdue:
        return f"missed by {duration(batch.finished_at - batch.deadline_at)}"
    if batch.finished_at or not batch.deadline_at:
        return "met"
    left = batch.deadline_at - timezone.now()
    return f"in {duration(left)}" if left > timedelta(0) else f"overdue for {duration(-left)}"


def _limits(batch: Batch) -> dict[str, Any]:
    names = ("timeout", "max_attempts", "concurrency", "max_failures", "key", "deadline")
    return {**{name: getattr(batch, name) for name in names}, "backoff": json.loads(batch.backoff)}


def _limits_in_words(batch: Batch) -> Iterator[str]:
    yield f"timeout {duration(timedelta(seconds=batch.timeout))}"
    yield "1 attempt" if batch.max_attempts == 1 else f"{batch.max_attempts} attempts"
    if backoff := pauses(json.loads(batch.backoff)):
        yield f"backoff {backoff}"
    if batch.concurrency is not None:
        yield f"concurrency {number(batch.concurrency)}"
    if batch.max_failures is not None:
        yield f"max_failures {number(batch.max_failures)}"
    if batch.deadline is not None:
        yield f"deadline {duration(timedelta(seconds=batch.deadline))}"


def _failures(batch: Batch) -> Any:
    return _light(batch.jobs.filter(status=JobStatus.FAILED).order_by("position"))


def _light(jobs: Any) -> Any:
    """Without what may have megabytes; arguments may be personal data too."""
    return jobs.defer("arguments", "result_text", "traceback")


def _job_data(job: BatchJob) -> dict[str, Any]:
    names = ("id", "event", "position", "round", "func", "queue", "status", "rq_id", "attempts", "worker")
    return {name: getattr(job, name) for name in (*names, "error_type", "error", "started_at", "finished_at")}


def _error(error: str, lines: int) -> list[str]:
    """The last lines of an error, which say most."""
    return [printable(line) for line in error.splitlines() if line.strip()][-lines:] or [""]
