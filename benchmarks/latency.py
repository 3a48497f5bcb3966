"""The time from the end of a batch's last job to the start of its callback, on an idle worker.

    python -m example_project.servers --postgres -- python -m benchmarks.latency [--batches 300]

Budget: p50 10 ms, p99 50 ms. Each batch has one job that returns the time of its end; the callback compares it with its
own start.
"""

import argparse
import random
import statistics
import time

from . import environment, report
from .laboratory import batchworker, run, tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=300)
    options = parser.parse_args()
    to_callback, in_all = [], []
    with batchworker():
        for _ in range(options.batches):
            time.sleep(
                random.uniform(0.05, 0.3)
            )  # so that batches start at random points of the worker's polling interval
            seconds, latency = run(tasks.stamp, [()], tasks.report_latency)
            to_callback.append(float(latency))
            in_all.append(seconds)
    lines = [line("last job's end to the callback's start", to_callback), line("open to the callback's end", in_all)]
    command = "python -m example_project.servers --postgres -- python -m benchmarks.latency"
    text = report.table([f"{options.batches} batches of one job", "p50, ms", "p90, ms", "p99, ms", "worst, ms"], lines)
    report.write("Latency on an idle worker", command, environment.described(), text)


def line(name: str, seconds: list[float]) -> list[str]:
    cuts = statistics.quantiles(seconds, n=100)
    return [name, *(f"{value * 1000:.1f}" for value in (cuts[49], cuts[89], cuts[98], max(seconds)))]


if __name__ == "__main__":
    main()
