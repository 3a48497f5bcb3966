"""`prune` and `reconcile`: what the coordinator does by itself, now and in full."""

import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
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
from ...transitions.pruning import Ended
from ...transport.client import client, request_reconcile
from .naming import titled
from .verb import GAP, Verb, add_json

PAGE = 500
ALL = 10_000
"""Batches whose counters `reconcile` compares with their rows."""
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
KEEP = "keep"


@dataclass(frozen=True)
class Pruned:
    """What became of the batches of one status."""

    status: str
    age: timedelta | None
    count: int = 0
    held: int = 0


class Prune(Verb):
    name = "prune"
    help = (
        "Deletes ended batches that are older than the setting RETENTION says, or the options. A batch stays while a "
        "callback of it has not ended, and where a row of the project would go with it; child batches go with the one "
        "above them, and are not counted. Workers do this by themselves."
    )

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        for status in ("succeeded", "failed", "cancelled"):
            text = f"delete {status} ones older than this: 90s, 30m, 12h, 7d, 2w, or keep (default: the setting)"
            parser.add_argument(f"--{status}", type=_age, metavar="AGE", help=text)
        parser.add_argument("--dry-run", action="store_true", help="only count them")
        add_json(parser)

    def run(self, **options: Any) -> bool:
        told: list[Pruned] = []
        for status, default in settings().RETENTION.items():
            given = options[status]
            age = default if given is None else None if given == KEEP else given
            told.append(self._prune(status, age, options["dry_run"]))
        if options["json"]:
            self.say_json([vars(line) for line in told])
            return True
        what = "would be deleted" if options["dry_run"] else "deleted"
        for line in told:
            if line.age is None:
                self.say(f"{line.status}: kept for ever")
                continue
            held = f"; {number(line.held)} held by a callback or by rows of the project" if line.held else ""
            self.say(f"{line.status}, older than {duration(line.age)}: {number(line.count)} {what}{held}")
        return True

    def _prune(self, status: str, age: timedelta | None, dry_run: bool) -> "Pruned":
        if age is None:
            return Pruned(status, None)
        before = timezone.now() - age
        count = held = 0
        for page in _pages(status, before):
            free = pruning.deletable(page)
            gone = len(free) if dry_run else sum(pruning.prune(group, before) for group in pruning.groups(free))
            count, held = count + gone, held + sum(not batch.is_child for batch in page) - gone
        return Pruned(status, age, count, held)


class Reconcile(Verb):
    name = "reconcile"
    help = (
        "Repairs counters that differ from their rows, ends what can end, and asks the batchworker that keeps the "
        "books to compare them with Redis now. --dry-run: only says what would be done and why; exit code 1 where "
        "there is anything."
    )

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="change nothing")
        add_json(parser)

    def run(self, **options: Any) -> bool:
        try:
            redis = client()
            try:
                return self._dry_run(redis, options["json"]) if options["dry_run"] else self._repair(redis, options)
            finally:
                redis.connection_pool.disconnect()
        except (RedisError, OSError, ImproperlyConfigured) as error:
            raise CommandError(f"Redis does not answer ({type(error).__name__}: {error}).") from error

    def _dry_run(self, redis: Redis, as_json: bool) -> bool:
        found = planned_repairs(redis, self._wait)
        if as_json:
            self.say_json([vars(repair) for repair in found])
            return not found
        batches = Batch.objects.in_bulk({repair.batch_id for repair in found})
        for batch_id in dict.fromkeys(repair.batch_id for repair in found):
            batch = batches.get(batch_id)
            self.say(self.style.MIGRATE_LABEL(titled(batch) if batch else f"Batch {batch_id}"))
            for repair in found:
                if repair.batch_id == batch_id:
                    self.say(f"{GAP}{repair.text}")
        self.say("Nothing was changed." if found else "The books, their rows and Redis agree.")
        return not found

    def _wait(self, count: int) -> None:
        jobs = "1 job in flight has" if count == 1 else f"{number(count)} jobs in flight have"
        self.stderr.write(
            f"{jobs} no trace in Redis; a second look in {reconcile.SECOND_LOOK:g} s tells whether that lasts."
        )

    def _repair(self, redis: Redis, options: dict[str, Any]) -> bool:
        repaired = [key for key in repairing.batches_to_check(limit=ALL) if repairing.repair_counters(key)]
        ended = repairing.end_batches()
        holder = active_coordinator()
        is_asked = holder is not None and is_alive(holder, timezone.now())
        if is_asked:
            request_reconcile(redis)
        if options["json"]:
            self.say_json(
                {"repaired": repaired, "ended": ended, "asked": holder.holder if holder and is_asked else None}
            )
            return is_asked
        if repaired:
            self.say(f"The counters of {_batches(len(repaired))} differed from the rows; they are repaired.")
        if ended:
            self.say(f"{_batches(ended).capitalize()} could end and did.")
        if not repaired and not ended:
            self.say("The counters agree with the rows, and no batch could end that has not.")
        if holder and is_asked:
            self.say(f"{holder.holder} keeps the books and was asked to compare them with Redis now.")
        else:
            self.stderr.write(
                "Nobody keeps the books, so they are not compared with Redis. Start one: manage.py batchworker"
            )
        return is_asked


def _pages(status: str, before: datetime) -> Iterator[list[Ended]]:
    last: Ended | None = None
    while page := pruning.ended_before(status, before, last, PAGE):
        yield page
        last = page[-1]


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{number(count)} batches"


def _age(text: str) -> timedelta | str:
    if text == KEEP:
        return KEEP
    match = re.fullmatch(r"(\d{1,9})([smhdw]?)", text)
    seconds = int(match[1]) * _UNITS[match[2] or "s"] if match else 0
    if not match or seconds > OLDEST.total_seconds():
        raise ArgumentTypeError(f"{text!r} is no age: write 90s, 30m, 12h, 7d, 2w, up to 100 years, or keep.")
    return timedelta(seconds=seconds)
