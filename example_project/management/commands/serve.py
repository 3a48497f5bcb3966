"""`manage.py serve`: runs the admin with example data, and a batchworker, until Ctrl-C."""

import random
import time
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand

from ...importing.importing import begin_import
from ...importing.models import Import
from ...processes import exit_on_signals
from ...shop.models import Product
from ...shop.photographs import draw_photographs
from ...shop.uploading import make_images_in_batch
from ...sorting.merge_sort import sort_in_batch
from ...sorting.models import Run
from ...workers import batchworker, check_alive, check_redis, manage

NAME = PASSWORD = "admin"
NUMBERS = 100


class Command(BaseCommand):
    help = "Runs the admin (user admin, password admin) with example data, and a batchworker, until Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "address", nargs="?", default="127.0.0.1:8000", help="address of the web server (port or address:port)"
        )
        parser.add_argument("--workers", type=int, default=2, metavar="N", help="executor processes (default 2)")

    def handle(self, *args: Any, address: str, workers: int, **options: Any) -> None:
        exit_on_signals()
        check_redis()
        try:
            self.prepare()
            self.serve(address, workers)
        except KeyboardInterrupt:
            self.stdout.write("The web server and the batchworker have ended.")

    def prepare(self) -> None:
        """Creates tables, a user and work for the worker: images, numbers to sort, an import that fails at first."""
        call_command("migrate", verbosity=0)
        users = get_user_model().objects
        if not users.filter(username=NAME).exists():
            users.create_superuser(NAME, password=PASSWORD)
        if not Product.objects.exists():
            self.stdout.write("Drawing ten photographs of 12 megapixels ...")
            photographs = draw_photographs(settings.DATA_DIR / "photographs")
            make_images_in_batch(Product.with_photographs("Teapot", photographs))
        if not Run.objects.exists():
            sort_in_batch(random.sample(range(10 * NUMBERS), NUMBERS))
        if not Import.objects.exists():
            begin_import()

    def serve(self, address: str, workers: int) -> None:
        """Runs both until Ctrl-C. Raises an error if one of them ends."""
        with batchworker(workers=workers) as worker, manage("runserver", address, "--noreload") as web:
            place = address if ":" in address else f"127.0.0.1:{address}"
            self.stdout.write(f"The admin: http://{place}/admin/ (user {NAME}, password {PASSWORD})")
            self.stdout.write(f"The shop: http://{place}/, the import: http://{place}/cities/")
            while True:
                check_alive(worker, web)
                time.sleep(0.2)
