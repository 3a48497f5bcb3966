"""The load of a round, in a process of its own: opens batches of all kinds; cancels, pauses and retries some of them.

It records each batch that `Batch.open` has acknowledged, and its number of jobs.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import django
from django.db import Error, connection

from . import ledger, points

LIVING = 20
"""Batches that may be unfinished at the same time."""


class Load:
    """Opens batches until the file `enough` exists, then does the remaining actions and exits."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.number = 0

    def run(self) -> None:
        while not self.is_enough() or self.later:
            try:
                self.do_what_is_due()
                if self.is_enough() or models.Batch.objects.filter(finished_at=None, parent_id=None).count() >= LIVING:
                    time.sleep(0.05)
                else:
                    self.number += 1
                    self.random.choice(KINDS)(self)
            except (Error, exceptions.BatchError) as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                connection.close()
                time.sleep(0.2)

    def is_enough(self) -> bool:
        return (self.folder / "enough").exists()

    def do_what_is_due(self) -> None:
        for each in [each for each in self.later if each[0] <= time.monotonic()]:
            each[1]()  # repeated if it raises: every verb may be called twice
            self.later.remove(each)

    def do_later(self, seconds: float, act: Callable[[], object]) -> None:
        self.later.append((time.monotonic() + seconds, act))

    def open(self, fill: Callable[..., int], success: Callable[..., object] | None = None, **options: object):
        success = success or jobs.callback
        with models.Batch.open(f"{fill.__name__} {self.number}", timeout=60, **options) as batch:
            jobs.register_callbacks(batch, success)
            count = fill(batch)
        ledger.acknowledge(batch.pk.hex, count)
        return batch

    def seconds(self) -> float:
        return self.random.choice([0.002, 0.01, 0.03, 0.06])

    # The kinds of batches.

    def plain(self) -> None:
        def plain(batch):
            return batch.map(jobs.work, range(self.random.randint(0, 60)), self.seconds())

        self.open(plain, max_attempts=3)

    def flaky(self) -> None:
        def flaky(batch):
            return batch.map(jobs.work, range(self.random.randint(5, 40)), self.seconds(), failing=30)

        self.open(flaky, max_attempts=4, backoff=[0.1, 0.3, 0.5])

    def failing(self) -> None:
        def failing(batch):
            return batch.map(jobs.work, range(20), self.seconds(), failing=50)

        self.open(failing, max_attempts=1)

    def giving_up(self) -> None:
        def giving_up(batch):
            return batch.map(jobs.work, range(60), self.seconds(), failing=50)

        self.open(giving_up, max_failures=3)

    def narrow(self) -> None:
        def narrow(batch):
            return batch.map(jobs.work, range(30), self.seconds(), failing=5)

        self.open(narrow, concurrency=3, max_attempts=4)

    def slow(self) -> None:
        """Long jobs, so that faults hit them during a run; one may run longer than a lease."""

        def slow(batch):
            batch.enqueue(jobs.work, 0, self.random.choice([0.5, 1.0, 13.0]))
            return batch.map(jobs.work, range(1, 4), 0.5) + 1

        self.open(slow, max_attempts=4)

    def hoarding(self) -> None:
        def hoarding(batch):
            return batch.map(jobs.hoard, range(2))

        self.open(hoarding, max_attempts=3)

    def growing(self) -> None:
        def growing(batch):
            return batch.map(jobs.grow, range(4), 5)

        self.open(growing, max_attempts=5)

    def slowly_filled(self) -> None:
        """Its first jobs end before the last ones are added: without the seal it would end too early."""

        def slowly_filled(batch):
            for _ in range(3):
                batch.map(jobs.work, range(4), 0.001)
                batch.block.flush()
                time.sleep(0.15)
            return 12

        self.open(slowly_filled, max_attempts=5)

    def healed(self) -> None:
        name = f"healed-{os.getpid()}-{self.number}"

        def healed(batch):
            return batch.map(jobs.work_once_healed, range(10), name)

        self.heal_later(self.open(healed), name)

    def healed_below(self) -> None:
        """A retry in a tree: it retries the child batches of the failed jobs, and does not run these jobs again."""
        name = f"healed-{os.getpid()}-{self.number}"

        def healed_below(batch):
            return batch.map(jobs.wait_for_healed, range(3), name)

        self.heal_later(self.open(healed_below, max_attempts=6), name)

    def heal_later(self, batch, name: str) -> None:
        def retry() -> None:
            batch.refresh_from_db()
            if batch.finished_at is None:
                self.do_later(0.5, retry)
                return
            (self.folder / name).touch()
            batch.retry_failed()

        self.do_later(1.0, retry)

    def cancelled(self) -> None:
        def cancelled(batch):
            return batch.map(jobs.work, range(80), 0.03)

        self.do_later(0.3, self.open(cancelled, max_attempts=3).cancel)

    def paused(self) -> None:
        def paused(batch):
            return batch.map(jobs.work, range(60), 0.03)

        batch = self.open(paused, max_attempts=3)
        self.do_later(0.2, batch.pause)
        self.do_later(0.8, batch.resume)

    def tree(self) -> None:
        """Jobs that return child batches, several levels deep; some runs fail after they have opened one."""

        def tree(batch):
            return batch.map(jobs.branch, range(2), self.random.choice([1, 2, 3]), self.seconds(), 10, 10)

        self.open(tree, max_attempts=6)

    def failing_below(self) -> None:
        def failing_below(batch):
            return batch.map(jobs.wait_for_child, range(4), self.seconds(), 40)

        self.open(failing_below, max_attempts=3)

    def cancelled_tree(self) -> None:
        def cancelled_tree(batch):
            return batch.map(jobs.branch, range(4), 2, 0.06, 0, 0)

        self.do_later(self.random.uniform(0.1, 1.0), self.open(cancelled_tree, max_attempts=6).cancel)

    def detaching(self) -> None:
        def detaching(batch):
            return batch.map(jobs.detach, range(2), self.seconds())

        self.open(detaching, max_attempts=6)

    def calling(self) -> None:
        """Its success callback opens a child batch, and waits for it."""

        def calling(batch):
            return batch.map(jobs.work, range(5), self.seconds())

        self.open(calling, jobs.callback_with_child, max_attempts=6)


KINDS = [
    Load.plain, Load.plain, Load.flaky, Load.failing, Load.giving_up, Load.narrow, Load.slow, Load.growing,
    Load.slowly_filled, Load.healed, Load.cancelled, Load.paused, Load.tree, Load.tree, Load.failing_below,
    Load.healed_below, Load.cancelled_tree, Load.detaching, Load.calling, Load.hoarding,
]  # fmt: skip

if __name__ == "__main__":
    django.setup()
    from django_batches import exceptions, models

    from . import jobs

    if os.environ.get(points.WANTED):
        points.install(points.Points("creator"))
    Load(Path(os.environ[ledger.FOLDER]), int(sys.argv[1])).run()
