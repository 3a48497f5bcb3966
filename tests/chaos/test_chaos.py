"""Short rounds of `python -m tests.chaos` with fixed seeds. The long run is `make chaos`."""

import signal
import subprocess
import sys

import pytest

from tests.processes import ROOT

from .__main__ import NOT_PERMITTED

pytestmark = pytest.mark.postgresql


def play(*options):
    """Plays a round in a process of its own, because it has its own servers and settings."""
    command = [sys.executable, "-m", "tests.chaos", *map(str, options)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as round_:
        try:
            out, errors = round_.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            round_.send_signal(signal.SIGINT)  # not SIGKILL: it must stop its servers and hosts
            out, errors = round_.communicate()
    print(out, errors)
    return subprocess.CompletedProcess(command, round_.returncode, out, errors)


@pytest.mark.parametrize("seed", [1])
def test_random_faults_lose_no_job_and_count_none_twice(seed):
    done = play("--seed", seed, "--seconds", 20)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_without_faults_every_run_is_an_attempt():
    done = play("--only", "none", "--seconds", 8)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_network_partitions_lose_no_job():
    done = play("--network", "--seconds", 14, "--pause", 1.5)
    if done.returncode == NOT_PERMITTED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
