"""`health` and `metrics`, for containers and monitoring."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from ...monitoring import health, metrics
from .base import Verb, aligned, cut, printable


class Health(Verb):
    help = (
        "Checks the database, Redis, the active coordinator, the workers, the outcome stream, due jobs and stuck "
        "batches. Exit code 1 if a check fails."
    )

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        names = health.Health.NAMES
        parser.add_argument("--only", action="append", choices=names, help="run only this check; may be repeated")
        text = "how late outcomes, due jobs or batches may be before a check fails (default 60)"
        parser.add_argument("--threshold", type=float, default=60.0, metavar="SECONDS", help=text)

    def run(self, **options: Any) -> bool:
        if not 0 <= options["threshold"] < 1e9:
            raise CommandError("--threshold must be 0 or more seconds.")
        checks = health.Health(timedelta(seconds=options["threshold"])).check(options["only"] or health.Health.NAMES)
        is_ok = all(check.is_ok for check in checks)
        if options["json"]:
            self.write_json({"ok": is_ok, "checks": [vars(check) for check in checks]})
            return is_ok
        rows = [[check.name, "ok" if check.is_ok else "error", printable(check.text)] for check in checks]
        for check, line in zip(checks, aligned(rows), strict=True):
            self.write(cut(line, self.width) if check.is_ok else self.paint(line, "error"))
        return is_ok


class Metrics(Verb):
    has_json = False
    help = "Prints the metrics in Prometheus' text format; needs the extra [prometheus]."

    def run(self, **options: Any) -> bool:
        try:
            self.stdout.write(metrics.text(), ending="")
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        return True
