"""`manage.py batchworker` with short leases and intervals, for tests that would only wait for the real ones.

    python -m tests.short_times --workers 2

The proportions are those of the real times: a lease outlives four renewals, and the second look comes after a renewal.
"""

import sys

from django.core.management import execute_from_command_line

LEASE = 6
"""Seconds; in production it is 45."""


def shorten() -> None:
    """Replaces the times of this process; imports the worker, so Django must be set up."""
    from django_batches.coordinator import lease, loop, reconcile  # noqa: PLC0415
    from django_batches.transport import scripts  # noqa: PLC0415
    from django_batches.worker import redis_link, rq_maintenance  # noqa: PLC0415

    for module, name, seconds in (
        (lease, "SECONDS", 4),
        (loop, "STANDBY", 0.5),
        (loop, "RECONCILE", 3.0),
        (loop, "UPKEEP", 3.0),
        (loop, "SECOND_LOOK", 2.5),
        (reconcile, "SECOND_LOOK", 2.5),
        (redis_link, "RENEW", 1.5),
        (rq_maintenance, "REGISTRIES", 3.0),
    ):
        assert hasattr(module, name), f"{module.__name__} has no {name} any more"
        setattr(module, name, seconds)
    before, after = "local LEASE = 45", f"local LEASE = {LEASE}"
    assert before in scripts._PRELUDE
    scripts._PRELUDE = scripts._PRELUDE.replace(before, after)


if __name__ == "__main__":
    import django

    django.setup()
    shorten()
    execute_from_command_line([sys.argv[0], "batchworker", *sys.argv[1:]])
