"""Runs `manage.py batchworker` with short leases and intervals, so that tests need not wait for the real ones.

    python -m tests.short_times --workers 2

As with the real times, a lease lasts for four renewals, and the reconciler looks a second time only after a renewal.
"""

import sys

from django.core.management import execute_from_command_line

LEASE = 6
"""Seconds; in production it is 45."""


def shorten() -> None:
    """Shortens the times in this process. Call it after `django.setup()`, because it imports the worker."""
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
