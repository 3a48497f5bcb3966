"""`prune` and `reconcile`, which do at once and completely what the coordinator does regularly."""

import re
from argparse import ArgumentParser, ArgumentTypeError
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.utils import timezone
from redis import Redis
from redis.exceptions import RedisError

from ...conf import OLDEST, settings
from ...coordinator import reconcile
from ...models import Batch
from ...monitoring.diagnosis import active_coordinator, is_alive
from ...monitoring.dry_run import planned_repairs
from ...monitoring.formatting import duration, number
from ...transitions import pruning, repairing
from ...transport.client import client, request_reconcile
from .base import INDENT, Verb, counted, titled

PAGE = 500
MAX_CHECKED = 10_000
"""How many batches `reconcile` checks for counters that differ from their rows."""
KEEP = "keep"
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Pruned:
    status: str
    age: timedelta | None
    count: int = 0
    held: int = 0
    """How many were old enough, but are kept for a callback or for rows of the project."""


class Prune(Verb):
    help = (
        "Deletes ended batches that are older than the RETENTION setting or the options allow. Batches with unfinished "
        "callbacks are kept, and so are those that rows of the project depend on. Child batches are deleted with their "
        "parents and are not counted. The coordinator also prunes, without this command."
    )

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        for status in ("succeeded", "failed", "cancelled"):
            text = f"delete {status} batches older than this: 90s, 30m, 12h, 7d, 2w, or keep (default: the setting)"
            parser.add_argument(f"--{status}", type=_age, metavar="AGE", help=text)
        parser.add_argument("--dry-run", action="store_true", help="only count the batches")

    def run(self, **options: Any) -> bool:
        given = {status: options[status] for status in settings().RETENTION if options[status] is not None}
        ages = {**settings().RETENTION, **given}
        results = [_prune(status, None if age == KEEP else age, options["dry_run"]) for status, age in ages.items()]
        if options["json"]:
            self.write_json([vars(result) for result in results])
            return True
        verb = "would be deleted" if options["dry_run"] else "deleted"
        for result in results:
            if result.age is None:
                self.write(f"{result.status}: kept forever")
                continue
            kept = f"; {number(result.held)} kept for a callback or for rows of the project" if result.held else ""
            self.write(f"{result.status}, older than {duration(result.age)}: {number(result.count)} {verb}{kept}")
        return True


class Reconcile(Verb):
    help = (
        "Repairs counters that differ from their rows, ends batches that can end, and makes the active coordinator "
        "compare the rows with Redis now. --dry-run only shows what would be repaired and why, with exit code 1 if "
        "there is anything."
    )

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="change nothing")

    def run(self, **options: Any) -> bool:
        try:
            redis = client()
            with closing(redis.connection_pool):
                return (self._dry_run if options["dry_run"] else self._repair)(redis, options["json"])
        except (RedisError, OSError, ImproperlyConfigured) as error:
            raise CommandError(f"Redis does not answer ({type(error).__name__}: {error}).") from error

    def _dry_run(self, redis: Redis, as_json: bool) -> bool:
        repairs = planned_repairs(redis, self._announce_second_look)
        if as_json:
            self.write_json([vars(repair) for repair in repairs])
            return not repairs
        batches = Batch.objects.in_bulk({repair.batch_id for repair in repairs})
        for batch_id in dict.fromkeys(repair.batch_id for repair in repairs):
            batch = batches.get(batch_id)
            self.write(self.style.MIGRATE_LABEL(titled(batch) if batch else f"Batch {batch_id}"))
            for repair in repairs:
                if repair.batch_id == batch_id:
                    self.write(f"{INDENT}{repair.text}")
        self.write("Nothing was changed." if repairs else "Counters, rows and Redis agree.")
        return not repairs

    def _announce_second_look(self, count: int) -> None:
        jobs = counted(count, "job in flight has", "jobs in flight have")
        self.stderr.write(f"{jobs} no trace in Redis. Looking again in {reconcile.SECOND_LOOK:g} s.")

    def _repair(self, redis: Redis, as_json: bool) -> bool:
        repaired = [key for key in repairing.batches_to_check(limit=MAX_CHECKED) if repairing.repair_counters(key)]
        ended = repairing.end_batches()
        lease = active_coordinator()
        name = lease.holder if lease and is_alive(lease, timezone.now()) else None
        if name is not None:
            request_reconcile(redis)
        if as_json:
            self.write_json({"repaired": repaired, "ended": ended, "asked": name})
            return name is not None
        if repaired:
            self.write(f"Repaired the counters of {counted(len(repaired), 'batch', 'batches')}.")
        if ended:
            self.write(f"Ended {counted(ended, 'batch', 'batches')}.")
        if not repaired and not ended:
            self.write("The counters agree with the rows, and every batch that can end has ended.")
        if name is not None:
            self.write(f"The active coordinator, {name}, will compare the rows with Redis now.")
        else:
            self.stderr.write(
                "The rows are not compared with Redis, because there is no active coordinator. Start one: manage.py "
                "batchworker"
            )
        return name is not None


def _prune(status: str, age: timedelta | None, dry_run: bool) -> Pruned:
    if age is None:
        return Pruned(status, None)
    before = timezone.now() - age
    count = held = 0
    last: pruning.Ended | None = None
    while page := pruning.ended_before(status, before, last, PAGE):
        last = page[-1]
        free = pruning.deletable(page)
        deleted = len(free) if dry_run else sum(pruning.prune(group, before) for group in pruning.groups(free))
        count, held = count + deleted, held + sum(not batch.is_child for batch in page) - deleted
    return Pruned(status, age, count, held)


def _age(text: str) -> timedelta | str:
    if text == KEEP:
        return KEEP
    match = re.fullmatch(r"(\d{1,9})([smhdw]?)", text)
    seconds = int(match[1]) * _UNITS[match[2] or "s"] if match else 0
    if not match or seconds > OLDEST.total_seconds():
        raise ArgumentTypeError(f"{text!r} is not an age: write 90s, 30m, 12h, 7d, 2w, up to 100 years, or keep.")
    return timedelta(seconds=seconds)
