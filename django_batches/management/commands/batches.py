"""`manage.py batches <verb>`: parses the arguments and runs the verb."""

import argparse
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import translation

from ..batches.actions import Cancel, Pause, Resume, Retry, Seal, Stop
from ..batches.base import Verb
from ..batches.details import Show
from ..batches.listing import List
from ..batches.maintenance import Prune, Reconcile
from ..batches.reporting import Health, Metrics
from ..batches.watching import Watch

VERBS: dict[str, type[Verb]] = {
    "list": List, "show": Show, "watch": Watch, "retry": Retry, "cancel": Cancel, "pause": Pause, "resume": Resume,
    "seal": Seal, "stop": Stop, "prune": Prune, "reconcile": Reconcile, "health": Health, "metrics": Metrics,
}  # fmt: skip


class Command(BaseCommand):
    help = (
        "Shows batches and acts on them. Exit code 0: done. 1: not found, refused, nothing to do, or as the help of "
        "the verb describes. Batches are named by their id, or by an unambiguous end or beginning of it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
        for name, verb in VERBS.items():
            subparser = verbs.add_parser(name, help=verb.help, description=verb.help)
            verb.add_arguments(subparser)
            if verb.has_json:
                subparser.add_argument("--json", action="store_true", help="print JSON")
            _add_common(subparser)

    def handle(self, *args: Any, **options: Any) -> None:
        with translation.override("en"):  # commands are not translated, but the diagnosis is
            is_ok = VERBS[options["verb"]](self).run(**options)
        if not is_ok:
            sys.exit(1)


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Accepts the options of every command after the verb too."""
    for flag in ("--settings", "--pythonpath"):
        parser.add_argument(flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for flag in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
        parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("-v", "--verbosity", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
