"""`health` and `metrics`: the state of the machinery, for containers and monitoring."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from ...monitoring import health, metrics
from .verb import Verb, add_json, aligned, cut, printable


class Health(Verb):
    name = "health"
    help = (
        "Is all well: database, Redis, who keeps the books, workers on queues with work, outcomes applied, nothing "
        "forgotten, nothing stuck. Exit code 1 where something is not."
    )

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument(
            "--only", action="append", choices=health.Health.NAMES, help="ask only this; may be repeated"
        )
        text = "how long something may wait that should not (default 60)"
        parser.add_argument("--threshold", type=float, default=60.0, metavar="SECONDS", help=text)
        add_json(parser)

    def run(self, **options: Any) -> bool:
        if not 0 <= options["threshold"] < 1e9:
            raise CommandError("--threshold must be 0 or more seconds.")
        asked = health.Health(timedelta(seconds=options["threshold"]))
        checks = asked.check(options["only"] or asked.NAMES)
        is_well = all(check.is_ok for check in checks)
        if options["json"]:
            self.say_json({"ok": is_well, "checks": [vars(check) for check in checks]})
            return is_well
        words = ["ok" if check.is_ok else "error" for check in checks]
        rows = [[check.name, word, printable(check.text)] for check, word in zip(checks, words, strict=True)]
        for line, word in zip(aligned(rows), words, strict=True):
            self.say(self.paint(cut(line, self.width) if word == "ok" else line, word))
        return is_well


class Metrics(Verb):
    name = "metrics"
    help = "The metrics as Prometheus reads them; needs the extra [prometheus]."

    def run(self, **options: Any) -> bool:
        try:
            self.stdout.write(metrics.text(), ending="")
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        return True
