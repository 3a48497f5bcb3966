"""The health check, for containers and monitoring. It diagnoses all batches at once."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from django.core.exceptions import ImproperlyConfigured
from django.db import Error
from django.utils import timezone
from redis.exceptions import RedisError

from .. import database
from ..models import Batch
from ..transport import client, probe
from . import backlog
from .diagnosis import active_coordinator, coordinator_findings, find_stuck, redis_findings
from .finding import Finding
from .formatting import duration, number

MAX_BATCHES = 200
"""At most this many unfinished batches are checked, oldest first."""
MAX_NAMED = 3
SECOND_LOOK = 2.5
"""Seconds after which the health check looks at overdue rows again. Those still not dispatched count as forgotten."""


@dataclass(frozen=True)
class Check:
    name: str
    is_ok: bool
    text: str


class Health:
    """Runs the checks. `threshold` is how late outcomes, due rows and batches may be before a check fails."""

    NAMES = ("database", "redis", "coordinator", "workers", "stream", "due", "stuck")

    def __init__(self, threshold: timedelta = timedelta(minutes=1)) -> None:
        self.threshold = threshold
        self._probe = probe.ProbeCache()

    def check(self, names: Sequence[str] = NAMES) -> list[Check]:
        """Runs these checks, in the order of `NAMES`. If the database is down, that is the only result."""
        found = [self._run("database")]
        if found[0].is_ok:
            found += [self._run(name) for name in self.NAMES[1:] if name in names]
        return [check for check in found if check.name in names or not check.is_ok]

    def _run(self, name: str) -> Check:
        check: Callable[[], tuple[bool, str]] = getattr(self, f"_{name}")
        try:
            return Check(name, *check())
        except (Error, RedisError, OSError, ImproperlyConfigured) as error:
            what = "Redis does not answer"
            if isinstance(error, Error):
                is_missing = database.dialect().is_missing_table(error)
                what = "Tables are missing: run manage.py migrate" if is_missing else "The database does not answer"
            detail = f"{type(error).__name__}: {error}".strip()
            return Check(name, False, f"{what} ({detail}).")

    def _database(self) -> tuple[bool, str]:
        database.batches().exists()
        return True, f"{database.connection().display_name} answers."

    def _redis(self) -> tuple[bool, str]:
        return _result(redis_findings(self._probe([])), "Redis answers.")

    def _coordinator(self) -> tuple[bool, str]:
        lease = active_coordinator()
        ok = f"{lease.holder} is the active coordinator (lease {lease.token})." if lease else ""
        return _result(coordinator_findings(timezone.now()), ok)

    def _workers(self) -> tuple[bool, str]:
        missing = (f for _batch, findings in self.stuck_batches for f in findings if f.code == "no_worker")
        return _result(missing, "Every queue with work has a worker.")

    def _stream(self) -> tuple[bool, str]:
        redis = client.quick_client(probe.TIMEOUT)
        with closing(redis.connection_pool):
            entries, seconds = backlog.stream(redis)
        if not entries:
            return True, "Every outcome has been applied."
        age = timedelta(seconds=seconds)
        text = f"{number(entries)} outcomes have not been applied yet, the oldest for {duration(age)}."
        return age < self.threshold, text

    def _due(self) -> tuple[bool, str]:
        rows = backlog.overdue(timezone.now(), self.threshold)
        if rows:
            # A callback that was just retried keeps its old `created_at`, but is dispatched within a second.
            time.sleep(SECOND_LOOK)
        if count := backlog.still_overdue(rows):
            return False, f"{number(count)} callbacks or retries have been due for over {duration(self.threshold)}."
        return True, "No due callback or retry was forgotten."

    def _stuck(self) -> tuple[bool, str]:
        since = timezone.now() - self.threshold
        stuck = [batch for batch, _findings in self.stuck_batches if backlog.last_progress(batch) < since]
        if not stuck:
            return True, "No batch is stuck."
        names = ", ".join(f"{batch} ({batch.pk})" for batch in stuck[:MAX_NAMED])
        more = f" and {number(len(stuck) - MAX_NAMED)} more" if len(stuck) > MAX_NAMED else ""
        count = "1 batch is" if len(stuck) == 1 else f"{number(len(stuck))} batches are"
        return False, f"{count} stuck: {names}{more}. See: manage.py batches list --stuck"

    @cached_property
    def stuck_batches(self) -> list[tuple[Batch, list[Finding]]]:
        return list(find_stuck(backlog.unfinished(MAX_BATCHES), self._probe))


def _result(findings: Iterable[Finding], ok: str) -> tuple[bool, str]:
    texts = sorted({str(finding) for finding in findings})
    return not texts, " ".join(texts) or ok
