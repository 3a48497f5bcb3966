"""Shared by the parts of the demo: a worker during a block, progress bars, and error messages."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.core.management.base import CommandError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from django_batches.models import Batch, BatchJob

from .processes import Process
from .workers import batchworker, check_alive

LOOK_AGAIN = 0.2
"""Seconds between two queries of a batch."""


class Show:
    """The terminal of the demo."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.console = Console(highlight=False)

    def say(self, text: str, style: str = "", end: str = "\n") -> None:
        self.console.print(text, style=style, end=end, markup=False, soft_wrap=True)

    @contextmanager
    def worker(self, queue: str) -> Iterator[Process]:
        """Runs a batchworker on that queue; its log is shown if the block fails."""
        log = settings.DATA_DIR / "batchworker.log"
        try:
            with log.open("wb") as file, batchworker(queue, workers=self.workers, stdout=file, stderr=file) as process:
                yield process
        except CommandError as error:
            raise CommandError(f"{error} The end of the worker's log:\n{log.read_text()[-2000:]}") from error

    def watch(self, batch: Batch, worker: Process) -> None:
        """Shows the progress of a batch until it and its callbacks have ended."""
        with self.bars() as progress:
            bar = progress.add_task(batch.description, total=batch.total)
            for _ in self.looks(batch, worker):
                progress.update(bar, completed=batch.total - batch.pending)

    def watch_tree(self, batch: Batch, worker: Process) -> None:
        """Shows the progress of a tree of batches; the totals grow with the tree."""
        with self.bars() as progress:
            batches, jobs = (progress.add_task(name, total=None) for name in ("batches", "jobs and callbacks"))
            for _ in self.looks(batch, worker):
                # All newer rows on its queue: to walk the tree at each query would cost more than the work itself.
                update(progress, batches, Batch, batch)
                update(progress, jobs, BatchJob, batch)

    def bars(self) -> Progress:
        columns = TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        return Progress(*columns, console=self.console)

    def looks(self, batch: Batch, worker: Process) -> Iterator[None]:
        """Yields the reloaded batch repeatedly, the last time when it and its callbacks have ended."""
        is_over = False
        while not is_over:
            check_alive(worker)
            is_over = batch.wait(LOOK_AGAIN)
            batch.reload()
            yield


def update(progress: Progress, bar: TaskID, model: type[Batch] | type[BatchJob], first: Batch) -> None:
    rows = model.objects.filter(pk__gte=first.pk, queue=first.queue)
    progress.update(bar, total=rows.count(), completed=rows.filter(finished_at__isnull=False).count())
