"""How many outcomes per second are applied: in bulk, as the coordinator does, and with one transaction per job.

    python -m example_project.servers --postgres -- python benchmarks/recording.py

It uses 10 batches and results of about 100 bytes; every tenth outcome is a failure with a traceback of 2 KB. It uses
and prints the server's durability settings. The second variant does what a hook with `F()` expressions would do: two
guarded updates in one transaction per job.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.settings")

import django

django.setup()

from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from django_batches import Batch, database
from django_batches.models import BatchJob
from django_batches.transitions import applying
from django_batches.transport.outcomes import Kind, Outcome, fingerprint
from example_project.shop.tasks import resize_image

CHUNK = 500
BATCHES = 10
RESULT = '"' + "r" * 98 + '"'
TRACEBACK = "Traceback (most recent call last):\n" + "  File ...\n" * 180


def outcomes_of(count: int) -> list[Outcome]:
    """Opens batches with `count` jobs in total, marks the jobs as dispatched, and returns their outcomes, mixed."""
    for _ in range(BATCHES):
        with Batch.open("benchmark") as batch:
            batch.map(resize_image, range(count // BATCHES))
    database.batches().update(in_flight=F("pending"))
    database.jobs().filter(status="created").update(status="queued", dispatch=1)
    jobs = database.jobs().filter(status="queued").order_by("position").values_list("pk", "batch_id")
    now = timezone.now()
    return [outcome(index, pk, batch, now) for index, (pk, batch) in enumerate(jobs)]


def outcome(index: int, pk, batch, now) -> Outcome:
    if index % 10:
        return Outcome(Kind.SUCCEEDED, pk, 1, batch, worker="w", started_at=now, finished_at=now, result=RESULT)
    return Outcome(
        Kind.FAILED, pk, 1, batch, worker="w", started_at=now, finished_at=now, is_final=True, was_logged=True,
        error_type="ValueError", error="ValueError: no", traceback=TRACEBACK,
        fingerprint=fingerprint("ValueError", "x"),
    )  # fmt: skip


def in_bulk(outcomes: list[Outcome]) -> None:
    for start in range(0, len(outcomes), CHUNK):
        applying.record(outcomes[start : start + CHUNK])


def one_by_one(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        succeeded = outcome.kind == Kind.SUCCEEDED
        with transaction.atomic():
            won = BatchJob.objects.filter(pk=outcome.job_id, status="queued", dispatch=1).update(
                status="succeeded" if succeeded else "failed", result_text=outcome.result, error=outcome.error,
                traceback=outcome.traceback, finished_at=outcome.finished_at, started_at=outcome.started_at,
                worker=outcome.worker,
            )  # fmt: skip
            if won:
                counter = "succeeded" if succeeded else "failed"
                Batch.objects.filter(pk=outcome.batch_id).update(
                    pending=F("pending") - 1, in_flight=F("in_flight") - 1, **{counter: F(counter) + 1}
                )


def rate(way, count: int) -> float:
    outcomes = outcomes_of(count)
    begun = time.perf_counter()
    way(outcomes)
    taken = time.perf_counter() - begun
    assert database.batches().filter(pending__gt=0).count() == 0
    return count / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--count", type=int, default=10_000, help="outcomes per round in bulk; a tenth of them one by one"
    )
    options = parser.parse_args()
    call_command("migrate", verbosity=0)
    print(server())
    bulk, single = [], []
    for _ in range(options.rounds):
        bulk.append(rate(in_bulk, options.count))
        single.append(rate(one_by_one, options.count // 10))
    for name, rates in (("in bulk", bulk), ("one by one", single)):
        median, least, most = statistics.median(rates), min(rates), max(rates)
        print(f"{name:<12}{median:>10,.0f} outcomes/s   (min {least:,.0f}, max {most:,.0f})")
    ratios = [left / right for left, right in zip(bulk, single, strict=True)]
    print(f"{'ratio':<12}{statistics.median(ratios):>10.1f}")


def server() -> str:
    if connection.vendor != "postgresql":
        return f"{connection.vendor} {'.'.join(map(str, connection.Database.sqlite_version_info))}"
    with connection.cursor() as cursor:
        cursor.execute("SELECT version(), current_setting('fsync'), current_setting('synchronous_commit')")
        version, fsync, commit = cursor.fetchone()
    return f"{' '.join(version.split()[:2])}, fsync {fsync}, synchronous_commit {commit}"


if __name__ == "__main__":
    main()
