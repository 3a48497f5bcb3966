"""`manage.py batches <verb>`: parses the arguments and runs the verb."""

import argparse
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import translation

from ..batches import actions, details, listing, maintenance, reporting, watching
from ..batches.base import Verb

VERBS: dict[str, type[Verb]] = {
    "list": listing.List, "show": details.Show, "watch": watching.Watch,
    "retry": actions.Retry, "cancel": actions.Cancel, "pause": actions.Pause, "resume": actions.Resume,
    "seal": actions.Seal, "stop": actions.Stop, "prune": maintenance.Prune, "reconcile": maintenance.Reconcile,
    "health": reporting.Health, "metrics": reporting.Metrics,
}  # fmt: skip


class Command(BaseCommand):
    help = (
        "Shows batches and acts on them. Exit code 0: done. 1: not found, refused, nothing to do, or as the help of "
        "the verb describes. Batches are named by their id, or by an unambiguous end or beginning of it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        hidden: Any = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
        for name, verb in VERBS.items():
            subparser = verbs.add_parser(name, help=verb.help, description=verb.help)
            verb.add_arguments(subparser)
            if verb.has_json:
                subparser.add_argument("--json", action="store_true", help="print JSON")
            # Accept Django's common options after the verb too.
            for flag in ("--settings", "--pythonpath"):
                subparser.add_argument(flag, **hidden)
            for flag in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
                subparser.add_argument(flag, action="store_true", **hidden)
            subparser.add_argument("-v", "--verbosity", type=int, **hidden)

    def handle(self, *args: Any, **options: Any) -> None:
        with translation.override("en"):  # commands are not translated, but the diagnosis is
            if not VERBS[options["verb"]](self).run(**options):
                sys.exit(1)
