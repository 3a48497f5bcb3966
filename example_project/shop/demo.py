"""The first part of the demo: the images of a product, one after the other and then in a batch."""

import time
from pathlib import Path

from django.conf import settings
from django.core.management.base import CommandError

from django_batches.models import Batch

from ..showing import Show
from .models import Product
from .photographs import draw_photographs, find_photographs
from .tasks import SIDES
from .uploading import make_images_in_batch, make_images_serially


def show_images(show: Show, folder: Path | None) -> None:
    """Makes three sizes of each photograph in both ways. Without a folder, draws ten photographs."""
    photographs = photographs_of(show, folder)
    serially = make_serially(show, photographs)
    in_batch = make_in_batch(show, photographs)
    show.say(f"In a batch it took {in_batch:.1f} s instead of {serially:.1f} s: ", end="")
    show.say(f"{serially / in_batch:.1f} times as fast, with {show.workers} executors.", style="bold")


def photographs_of(show: Show, folder: Path | None) -> list[Path]:
    if folder is None:
        show.say("Drawing ten photographs of 12 megapixels ...")
        return draw_photographs(settings.DATA_DIR / "photographs")
    try:
        return find_photographs(folder)
    except ValueError as error:
        raise CommandError(str(error)) from error


def make_serially(show: Show, photographs: list[Path]) -> float:
    """Makes the images in this process; returns the seconds it took."""
    product = Product.with_photographs("Teapot (one after the other)", photographs)
    show.say(f"{len(photographs)} photographs, {len(SIDES)} sizes of each, one after the other ...")
    begun = time.monotonic()
    try:
        make_images_serially(product)
    except OSError as error:  # Pillow's file errors are OSErrors, too
        raise CommandError(f"A photograph could not be resized: {error}") from error
    seconds = time.monotonic() - begun
    show.say(f"  {seconds:.1f} s; {visibility(product)}")
    return seconds


def make_in_batch(show: Show, photographs: list[Path]) -> float:
    """Makes the images in a batch; returns the seconds until the callback had run."""
    product = Product.with_photographs("Teapot (in a batch)", photographs)
    show.say(f"The same in a batch, with {show.workers} executors ...")
    with show.worker("images") as worker:
        begun = time.monotonic()
        batch = make_images_in_batch(product)
        show.watch(batch, worker)
        seconds = time.monotonic() - begun
    show.say(f"  {seconds:.1f} s; {visibility(product)}")
    report(show, batch)
    return seconds


def report(show: Show, batch: Batch) -> None:
    """Prints how the batch ended; raises `CommandError` if a job or a callback failed."""
    show.say(f"  The batch {batch.status}: {batch.succeeded} of {batch.total} jobs succeeded.")
    unlucky = [*batch.jobs.exclude(status="succeeded"), *batch.callbacks.exclude(status="succeeded")]
    for job in unlucky:
        show.say(f"  {job}: {job.error}")
    if unlucky:
        raise CommandError("Some jobs or callbacks failed.")


def visibility(product: Product) -> str:
    product.refresh_from_db()
    return "customers see the product." if product.is_visible else "the product is not visible."
