"""Plays one round and prints its result: `python -m tests.chaos --seed 1 --seconds 40`."""

import argparse
import json
import os
import re
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from . import network, points, servers
from .faults import KINDS, PARTITIONS
from .harness import log_of_violations, run
from .injector import Injector
from .sweep import Sweep

NOT_PERMITTED = 77
"""The exit code if network namespaces are not permitted."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=40, help="how long faults are injected")
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds between two faults")
    parser.add_argument(
        "--only", action="append", help=f"only this kind of fault: {', '.join(KINDS)}; or none", metavar="KIND"
    )
    parser.add_argument("--points", type=int, default=0, metavar="N", help="sweep over N crash points instead")
    parser.add_argument("--match", default="", help="only crash points that match, such as `executor: EVALSHA.*killed`")
    parser.add_argument("--network", action="store_true", help="run hosts in network namespaces and partition them")
    parser.add_argument("--fsync", action="store_true", help="let PostgreSQL write to disk at each commit")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the round")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    options = parser.parse_args()
    if options.network:
        try:
            network.enter()
        except network.NotPermitted as error:
            print(f"Network namespaces are not permitted here: {error}")
            return NOT_PERMITTED
    if options.fsync:
        os.environ[servers.FSYNC] = "yes"
    kinds = [kind for kind in KINDS if options.network or kind not in PARTITIONS]
    if options.only:
        kinds = [kind for kind in options.only if kind != "none"]
    breaker = partial(Injector, kinds=kinds, pause=options.pause)
    if options.points:
        os.environ[points.WANTED] = "yes"
        breaker = partial(Sweep, limit=options.points, only=re.compile(options.match))
    result = run(options.seed, options.seconds, breaker, options.keep)
    print(
        f"seed {result.seed}: {sum(map(len, result.recovery.values()))} faults, {result.batches} batches, "
        f"{result.jobs} jobs, {result.runs} runs, {result.callbacks} callbacks, {result.samples} samples, "
        f"{len(result.violations)} violations {result.folder}"
    )
    if options.json:
        options.json.write_text(json.dumps(asdict(result)))
    if result.violations:
        print(log_of_violations(result))
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
