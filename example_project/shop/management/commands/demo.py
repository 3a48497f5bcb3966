"""`manage.py demo`: the images of a product, made one after the other and then in a batch, and how long each took."""

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from django_batches.models import Batch

from ....processes import Process, exit_on_signals
from ....workers import batchworker, check_alive, check_redis
from ...models import Product
from ...photographs import draw_photographs, find_photographs
from ...tasks import SIDES
from ...uploading import make_images_in_batch, make_images_serially


class Command(BaseCommand):
    help = "Makes three sizes of ten photographs, one after the other and then in a batch, and compares the times."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--images", type=Path, metavar="DIR", help="folder of photographs (else ten are drawn)")
        parser.add_argument("--workers", type=int, default=2, metavar="N", help="executor processes (default 2)")

    def handle(self, *args: Any, images: Path | None, workers: int, **options: Any) -> None:
        if workers < 1:
            raise CommandError("--workers must be 1 or more.")
        exit_on_signals()
        self.console = Console(highlight=False)
        try:
            check_redis()
            call_command("migrate", verbosity=0)
            photographs = self.photographs(images)
            serially = self.make_serially(photographs)
            in_batch = self.make_in_batch(photographs, workers)
        except KeyboardInterrupt:
            raise CommandError("Interrupted; what was started has ended.", returncode=130) from None
        self.console.print(f"In a batch it took {in_batch:.1f} s instead of {serially:.1f} s: ", end="")
        self.console.print(f"{serially / in_batch:.1f} times as fast, with {workers} executors.", style="bold")

    def photographs(self, folder: Path | None) -> list[Path]:
        if folder is None:
            self.console.print("Drawing ten photographs of 12 megapixels ...")
            return draw_photographs(settings.DATA_DIR / "photographs")
        try:
            return find_photographs(folder)
        except ValueError as error:
            raise CommandError(str(error)) from error

    def make_serially(self, photographs: list[Path]) -> float:
        """Makes the images here; returns how many seconds it took."""
        product = Product.with_photographs("Teapot (one after the other)", photographs)
        self.console.print(f"{len(photographs)} photographs, {len(SIDES)} sizes of each, one after the other ...")
        begun = time.monotonic()
        try:
            make_images_serially(product)
        except OSError as error:  # Pillow's errors about a file are OSErrors too
            raise CommandError(f"A photograph could not be made smaller: {error}") from error
        seconds = time.monotonic() - begun
        self.console.print(f"  {seconds:.1f} s; {self.visibility(product)}")
        return seconds

    def make_in_batch(self, photographs: list[Path], workers: int) -> float:
        """Makes the images in a batch; returns how many seconds it took until the callback had run."""
        product = Product.with_photographs("Teapot (in a batch)", photographs)
        self.console.print(f"The same in a batch, with {workers} executors ...")
        log = settings.DATA_DIR / "batchworker.log"
        try:
            with log.open("wb") as file, batchworker("images", workers=workers, stdout=file, stderr=file) as worker:
                begun = time.monotonic()
                batch = make_images_in_batch(product)
                self.watch(batch, worker)
                seconds = time.monotonic() - begun
            self.console.print(f"  {seconds:.1f} s; {self.visibility(product)}")
            self.report(batch)
        except CommandError as error:
            raise CommandError(f"{error} The end of the worker's log:\n{log.read_text()[-2000:]}") from error
        return seconds

    def watch(self, batch: Batch, worker: Process) -> None:
        """Shows how far the batch is, until it has ended and its callbacks too."""
        columns = TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task(batch.description, total=batch.total)
            is_over = False
            while not is_over:
                check_alive(worker)
                is_over = batch.wait(0.1)
                batch.reload()
                progress.update(bar, completed=batch.total - batch.pending)

    def report(self, batch: Batch) -> None:
        """Says how the batch ended; raises `CommandError` where it or its callback has failed."""
        self.console.print(f"  The batch {batch.status}: {batch.succeeded} of {batch.total} jobs succeeded.")
        unlucky = [*batch.jobs.exclude(status="succeeded"), *batch.callbacks.exclude(status="succeeded")]
        for job in unlucky:
            self.console.print(f"  {job}: {job.error}", markup=False)
        if unlucky:
            raise CommandError("Not all of it succeeded.")

    def visibility(self, product: Product) -> str:
        product.refresh_from_db()
        return "customers see the product." if product.is_visible else "the product is not visible."
