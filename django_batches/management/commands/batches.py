"""`manage.py batches <verb>`: parses, and hands over to the verb."""

import argparse
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import translation

from ..batches.acting import Cancel, Pause, Resume, Retry, Seal, Stop
from ..batches.keeping import Prune, Reconcile
from ..batches.listing import List
from ..batches.showing import Show
from ..batches.telling import Health, Metrics
from ..batches.verb import Verb
from ..batches.watching import Watch

VERBS: dict[str, type[Verb]] = {
    verb.name: verb
    for verb in (
        List, Show, Watch, Retry, Cancel, Pause, Resume, Seal, Stop, Prune, Reconcile, Health, Metrics,
    )
}  # fmt: skip


class Command(BaseCommand):
    help = (
        "Shows batches and acts on them. Exit code 0: done; 1: not found, refused, nothing to do, or what the verb's "
        "own help says. A batch is named by its id, or by an unambiguous end or beginning of it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
        for name, verb in VERBS.items():
            described = verbs.add_parser(name, help=verb.help, description=verb.help)
            verb.add_arguments(described)
            _add_common(described)

    def handle(self, *args: Any, **options: Any) -> None:
        verb = VERBS[options["verb"]](self.stdout, self.stderr, self.style)
        with translation.override("en"):  # plain English, as all that the commands say
            is_well = verb.run(**options)
        if not is_well:
            sys.exit(1)


def _add_common(parser: argparse.ArgumentParser) -> None:
    """The options of every command, also after the verb."""
    for flag in ("--settings", "--pythonpath"):
        parser.add_argument(flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for flag in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
        parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("-v", "--verbosity", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
