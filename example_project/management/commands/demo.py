"""`manage.py demo`: runs product images, a merge sort and an import in stages, all in batches."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from ...importing.demo import show_import
from ...processes import exit_on_signals
from ...shop.demo import show_images
from ...showing import Show
from ...sorting.demo import show_merge_sort
from ...workers import check_redis

PARTS = ("images", "sorting", "import")


class Command(BaseCommand):
    help = "Makes the images of a product, sorts numbers by merge sort and imports cities in stages, all in batches."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
        parser.add_argument("--images", type=Path, metavar="DIR", help="folder of photographs (default: draw ten)")
        parser.add_argument("--numbers", type=int, default=100, metavar="N", help="numbers to sort (default 100)")
        parser.add_argument("--workers", type=int, default=2, metavar="N", help="executor processes (default 2)")

    def handle(
        self, *args: Any, parts: list[str], images: Path | None, numbers: int, workers: int, **options: Any
    ) -> None:
        if unknown := set(parts) - set(PARTS):
            raise CommandError(f"There is no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}.")
        if workers < 1 or numbers < 1:
            raise CommandError("--workers and --numbers must be 1 or more.")
        exit_on_signals()
        show = Show(workers)
        runs = {
            "images": lambda: show_images(show, images),
            "sorting": lambda: show_merge_sort(show, numbers),
            "import": lambda: show_import(show),
        }
        try:
            check_redis()
            call_command("migrate", verbosity=0)
            for number, part in enumerate(parts or PARTS):
                if number:
                    show.say("")
                runs[part]()
        except KeyboardInterrupt:
            raise CommandError("Interrupted. All started processes have ended.", returncode=130) from None
