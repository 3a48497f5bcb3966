"""Operations on a batch of a million jobs: retry of a tenth, cancel, delete and prune, and the dead rows they leave.

    python -m example_project.servers --postgres -- python -m benchmarks.million [--jobs 1000000]

Meanwhile a probe locks the row of the batch repeatedly, as adding a job or acting in the admin would. Its longest wait
shows how long an operation blocks the batch. Autovacuum has PostgreSQL's default settings, or runs when
`--scale-factor` of the rows are dead.
"""

import argparse
import time
from collections.abc import Callable
from io import StringIO
from typing import Any
from uuid import UUID

from django.core.management import call_command
from django.db import connection, transaction

from . import environment, report
from .contend import DONE
from .laboratory import Batch, BatchJob, Watch, batchworker, has_ended, redis, run, tasks, wait_until

AFTERWARDS = 10_000
"""No-op jobs before and after the operations, to see how much slower the tables have become."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--scale-factor", type=float, help="autovacuum_vacuum_scale_factor of the jobs table")
    options = parser.parse_args()
    lines: list[list[str]] = []
    with batchworker():
        if options.scale_factor:
            tune_autovacuum(options.scale_factor)
        before = speed()
        scans = statistics_of_jobs()["seq_scan"]
        first = tenth_fails(options.jobs)
        wait_until(lambda: has_ended(first), timeout=3600)
        redis.delete(DONE)
        redis.set(tasks.MENDED, 1)
        failed = options.jobs // tasks.EVERY
        lines.append(line("retry_failed(), the call", failed, first, first.retry_failed))
        lines.append(line("… until all have succeeded", failed, first, lambda: redis.blpop([DONE])))
        with Batch.open("paused") as paused:
            paused.pause()
            paused.map(tasks.noop, range(options.jobs))
        lines.append(line("cancel(), until the batch has ended", options.jobs, paused, lambda: cancel(paused)))
        lines.append(line("delete()", options.jobs, first, first.delete))
        lines.append(line("batches prune", options.jobs, paused, prune))
        assert not Batch.objects.filter(pk__in=[first.pk, paused.pk]).exists()
        found = statistics_of_jobs()
        after = speed()
    head = [
        "operation", "jobs", "seconds", "jobs/s", "longest wait for row, ms", "dead rows afterwards",
        "table and indexes, MiB",
    ]  # fmt: skip
    text = report.table(head, lines)
    text += (
        f"\n\n{AFTERWARDS:,} no-op jobs before: {before:,.0f} jobs/s, afterwards: {after:,.0f} jobs/s."
        f" Sequential scans of the jobs table: {found['seq_scan'] - scans}; autovacuum ran"
        f" {found['autovacuum_count']} times."
    )
    command = "python -m example_project.servers --postgres -- python -m benchmarks.million"
    title = "Operations on a million jobs"
    if options.scale_factor:
        command += f" --scale-factor {options.scale_factor}"
        title += f", with autovacuum_vacuum_scale_factor = {options.scale_factor}"
    report.write(title, command, environment.described(), text)


def tune_autovacuum(scale_factor: float) -> None:
    with connection.cursor() as cursor:
        table = BatchJob._meta.db_table
        cursor.execute(f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = {scale_factor})")


def speed() -> float:
    """Returns jobs per second, the best of three runs."""
    return max(AFTERWARDS / run(tasks.noop, ((index,) for index in range(AFTERWARDS)))[0] for _ in range(3))


def tenth_fails(jobs: int) -> Batch:
    with Batch.open("a tenth fails") as batch:
        batch.on_success(tasks.done)
        batch.map(tasks.fail_sometimes, range(jobs))
    return batch


def cancel(batch: Batch) -> None:
    batch.cancel()
    wait_until(lambda: has_ended(batch), timeout=600)


def prune() -> None:
    call_command("batches", "prune", "--cancelled", "0s", stdout=StringIO())


def wait_for(batch: UUID) -> float:
    """Returns the seconds until the batch's row could be locked."""
    begun = time.perf_counter()
    with transaction.atomic():
        Batch.objects.select_for_update().filter(pk=batch).first()
    return time.perf_counter() - begun


def line(act: str, jobs: int, batch: Batch, do: Callable[[], Any]) -> list[str]:
    with Watch(lambda: wait_for(batch.pk), every=0.02) as waits:
        begun = time.perf_counter()
        do()
        seconds = time.perf_counter() - begun
    found = statistics_of_jobs()
    cells = [
        act, f"{jobs:,}", f"{seconds:.1f}", f"{jobs / seconds:,.0f}", f"{waits.most * 1000:.0f}",
        f"{found['n_dead_tup']:,}", f"{found['size'] / 2**20:,.0f}",
    ]  # fmt: skip
    print(" ".join(cells), flush=True)
    return cells


def statistics_of_jobs() -> dict[str, int]:
    """Returns PostgreSQL's statistics of the jobs table."""
    names = ("seq_scan", "n_dead_tup", "autovacuum_count")
    with connection.cursor() as cursor:
        table = BatchJob._meta.db_table
        cursor.execute(
            f"SELECT {', '.join(names)}, pg_total_relation_size(relid) FROM pg_stat_user_tables WHERE relname = %s",
            [table],
        )
        return dict(zip((*names, "size"), cursor.fetchone(), strict=True))


if __name__ == "__main__":
    main()
