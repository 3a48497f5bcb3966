"""Is the machinery well? For containers and monitoring: what "why does it not move" asks, for all batches at once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from django.core.exceptions import ImproperlyConfigured
from django.db import Error
from django.utils import timezone
from redis.exceptions import RedisError

from .. import database
from ..coordinator import lease
from ..models import Batch
from ..transport.probe import ProbeCache, quick_client
from . import backlog
from .diagnosis import Finding, active_coordinator, is_there, stuck
from .formatting import duration, moment, number

CHECKED = 200
"""Batches that are looked at, the oldest first."""
NAMED = 3
SECOND_LOOK = 2.5
"""Seconds: what was due and is dispatched within them was not forgotten."""


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    is_ok: bool
    text: str


class Health:
    """Asks when it is asked; `threshold` is how long something may wait that should not wait at all."""

    NAMES = ("database", "redis", "books", "workers", "stream", "due", "stuck")

    def __init__(self, threshold: timedelta = timedelta(minutes=1)) -> None:
        self.threshold = threshold
        self._asked = ProbeCache()

    def check(self, names: Sequence[str] = NAMES) -> list[Check]:
        """The answers to these questions, in their order. Where the database is away, that is the only answer."""
        found = [self._answer("database")]
        if found[0].is_ok:
            found += [self._answer(name) for name in self.NAMES[1:] if name in names]
        return [check for check in found if check.name in names or not check.is_ok]

    def _answer(self, name: str) -> Check:
        question: Callable[[], tuple[bool, str]] = getattr(self, f"_{name}")
        try:
            return Check(name, *question())
        except Error as error:
            if database.is_missing_table(error):
                return Check(name, False, f"Tables are missing: run manage.py migrate ({_said(error)}).")
            return Check(name, False, f"The database does not answer ({_said(error)}).")
        except (RedisError, OSError, ImproperlyConfigured) as error:
            return Check(name, False, f"Redis does not answer ({_said(error)}).")

    def _database(self) -> tuple[bool, str]:
        database.batches().exists()
        return True, f"{database.connection().display_name} answers."

    def _redis(self) -> tuple[bool, str]:
        broker = self._asked([])
        if broker.error:
            return False, f"Redis does not answer ({broker.error})."
        if broker.is_suspended:
            return False, "RQ's workers have been suspended (rq suspend). Resume them: rq resume"
        return True, "Redis answers."

    def _books(self) -> tuple[bool, str]:
        holder = active_coordinator()
        if holder is None:
            return False, "No batchworker has ever run here. Start one: manage.py batchworker"
        if not is_there(holder, timezone.now()):
            since = moment(holder.expires_at)
            return False, f"No batchworker has been seen since {since}. Start one: manage.py batchworker"
        if text := lease.other_namespace(holder.namespace):
            return False, f"{text} {lease.SAME_NAMESPACE}"
        return True, f"{holder.holder} keeps the books (lease {holder.token})."

    def _workers(self) -> tuple[bool, str]:
        missing = {f.text: f.advice for _batch, found in self.stuck_batches for f in found if f.code == "no_worker"}
        if missing:
            return False, " ".join(f"{text} {advice}" for text, advice in sorted(missing.items()))
        return True, "Every queue with work has a worker."

    def _stream(self) -> tuple[bool, str]:
        redis = quick_client()
        try:
            stream = backlog.stream(redis)
        finally:
            redis.connection_pool.disconnect()
        if not stream.entries:
            return True, "Every outcome is applied."
        age = timedelta(seconds=stream.age)
        text = f"{number(stream.entries)} outcomes wait to be applied, the oldest for {duration(age)}."
        return age < self.threshold, text

    def _due(self) -> tuple[bool, str]:
        found = backlog.overdue(timezone.now(), self.threshold)
        if found:
            # A callback that was retried just now has the age of its first round, and moves within the second.
            time.sleep(SECOND_LOOK)
        count = backlog.still_overdue(found)
        if count:
            return False, f"{number(count)} callbacks or retries are due for more than {duration(self.threshold)}."
        return True, "Nothing that is due was forgotten."

    def _stuck(self) -> tuple[bool, str]:
        since = timezone.now() - self.threshold
        still = [batch for batch, _findings in self.stuck_batches if backlog.moved_at(batch) < since]
        if not still:
            return True, "No batch is stuck."
        names = ", ".join(f"{batch} ({batch.pk})" for batch in still[:NAMED])
        more = f" and {number(len(still) - NAMED)} more" if len(still) > NAMED else ""
        what = "1 batch does" if len(still) == 1 else f"{number(len(still))} batches do"
        return False, f"{what} not move: {names}{more}. See: manage.py batches list --stuck"

    @cached_property
    def stuck_batches(self) -> list[tuple[Batch, list[Finding]]]:
        """The oldest batches that do not move, and why."""
        return list(stuck(backlog.unsettled(CHECKED), self._asked))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip()
