"""The server time of the admin's pages for a batch of 1,000,000 jobs, and of its retry and deletion.

    python -m example_project.servers --postgres -- python -m benchmarks.admin [--jobs N]

Budget: 200 ms for each page. It uses its own test database. The exit code is 1 if a page exceeds the budget.
"""

import argparse
import os
import statistics
import sys
import time

import django

BUDGET = 0.2
ROUNDS = 15
STATUSES = ("failed", "cancelled", "in_flight", "waiting", "succeeded")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    from django.db import connection  # noqa: PLC0415 (needs the settings)
    from django.test.utils import setup_test_environment, teardown_test_environment  # noqa: PLC0415

    setup_test_environment(debug=False)
    name = connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        return measure(options.jobs)
    finally:
        connection.creation.destroy_test_db(name, verbosity=0)
        teardown_test_environment()


def measure(jobs: int) -> int:
    from django.contrib.auth import get_user_model  # noqa: PLC0415
    from django.test import Client  # noqa: PLC0415
    from django.urls import reverse  # noqa: PLC0415

    from tests.admin_data import analyze, batch_of, batchworker_is_there  # noqa: PLC0415

    begun = time.perf_counter()
    thousandth = jobs // 1000
    batch = batch_of(
        "A million", succeeded=600 * thousandth, failed=100 * thousandth, cancelled=50 * thousandth, running=200,
        queued=800, scheduled=50 * thousandth, created=200 * thousandth - 1000,
    )  # fmt: skip
    for index in range(200):
        batch_of(f"Small {index}", succeeded=5, failed=index % 2, created=index % 3)
    analyze()
    batchworker_is_there(3600)
    print(f"{batch.total:,} jobs in one batch, 200 small ones; written in {time.perf_counter() - begun:.0f} s")
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("root", password="root"))
    at = lambda name, *args: reverse(f"admin:django_batches_batch_{name}", args=args)  # noqa: E731
    key, group = batch.pk, batch.failure_groups.get().fingerprint
    middle = batch.total // 2
    pages = {
        "list": at("changelist"),
        "list, has failures": at("changelist") + "?failures=yes",
        "list, not progressing": at("changelist") + "?moves=no",
        "list, JSON of 50 bars": at("live") + "?" + "&".join(f"id={k}" for k in first_page()),
        "batch page": at("change", key),
        "batch page, JSON": at("live_page", key),
        "jobs": at("jobs", key),
        "jobs, in the middle": at("jobs", key) + f"?after={middle}",
        "jobs, the last": at("jobs", key) + f"?before={batch.total}",
        **{f"jobs, {status}": at("jobs", key) + f"?status={status}" for status in STATUSES},
        "jobs, of one failure": at("jobs", key) + f"?fingerprint={group}",
        "jobs, succeeded, from the end": at("jobs", key) + f"?status=succeeded&before={batch.total}",
        "confirmation": at("act", key, "retry"),
    }  # fmt: skip
    over = 0
    for name, address in pages.items():
        median, worst = times(client, address)
        over += median > BUDGET
        remark = "   OVER" * (median > BUDGET)
        print(f"{name:<32} median {median * 1000:7.1f} ms   worst {worst * 1000:7.1f} ms{remark}")
    acts(batch)
    return int(over > 0)


def first_page():  # type: ignore[no-untyped-def]
    from django_batches.models import Batch  # noqa: PLC0415

    return Batch.objects.values_list("pk", flat=True)[:50]


def times(client, address):  # type: ignore[no-untyped-def]
    taken = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        response = client.get(address)
        taken.append(time.perf_counter() - begun)
        assert response.status_code == 200, (address, response.status_code)
    return statistics.median(taken[1:]), max(taken[1:])


def acts(batch):  # type: ignore[no-untyped-def]
    """Prints how long the large operations take."""
    from django_batches import database  # noqa: PLC0415
    from django_batches.models import Batch  # noqa: PLC0415

    begun = time.perf_counter()
    count = batch.retry_failed()
    print(f"retry of {count:,} failed jobs: {time.perf_counter() - begun:.1f} s")
    database.jobs().filter(batch=batch).exclude(status__in=("succeeded", "cancelled", "failed")).update(
        status="succeeded"
    )
    done = database.jobs().filter(batch=batch, status="succeeded").count()
    Batch.objects.filter(pk=batch.pk).update(
        pending=0, in_flight=0, succeeded=done, status="failed", finished_at=batch.created_at
    )
    begun = time.perf_counter()
    count, _ = batch.delete()
    print(f"delete of {count:,} rows: {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
