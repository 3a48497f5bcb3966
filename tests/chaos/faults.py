"""The faults. Each one breaks something, and restores it before it returns."""

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import is_alive

from . import rq_actions
from .stage import Host, Stage, children_of, names_of_children
from .worker import LEASE


@dataclass
class Fault:
    """An injected fault; times are those of `time.time()`."""

    kind: str
    began: float
    ended: float = 0.0
    target: str = ""
    pids: list[int] = field(default_factory=list)
    """The processes that it hit."""
    jobs: list[str] = field(default_factory=list)
    """The RQ ids of the jobs that it hit."""
    error: str = ""

    @property
    def changed(self) -> set[str]:
        """Its `jobs` as "job-dispatch"."""
        return {"-".join(rq_id.split("-")[-2:]) for rq_id in self.jobs}


@dataclass(frozen=True)
class Kind:
    name: str
    weight: int
    needs: str
    """host, redis, postgres, load or nothing: what other faults must not use at the same time."""
    run: Callable[..., None]


KINDS: dict[str, Kind] = {}
LOSES: set[str] = set()
"""The kinds after which Redis may have lost data."""


def fault(name: str, weight: int, needs: str, *, loses: bool = False) -> Callable[[Callable[..., None]], None]:
    def register(function: Callable[..., None]) -> None:
        KINDS[name] = Kind(name, weight, needs, function)
        LOSES.update({name} if loses else ())

    return register


def kill(done: Fault, *pids: int | None) -> None:
    for pid in pids:
        if pid is not None:
            done.pids.append(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def freeze(done: Fault, pids: list[int], seconds: float) -> None:
    with ExitStack() as thawing:
        for pid in pids:
            thawing.callback(send, pid, signal.SIGCONT)
            send(pid, signal.SIGSTOP)
            done.pids.append(pid)
        time.sleep(seconds)


def send(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def active_coordinator(stage: Stage) -> int | None:
    """The process id of the active coordinator, by the lease in the database."""
    with stage.postgres.connect() as connection:
        row = connection.execute("SELECT holder FROM django_batches_lease").fetchone()
    return next((pid for pid, name in names_of_children(stage.folder).items() if row and name == row[0]), None)


@fault("nothing", 2, "nothing")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    """For comparison: how long jobs take without a fault."""


@fault("executor killed", 85, "nothing")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    kill(done, rng.choice([pid for each in stage.hosts for pid in each.executors()]))


@fault("coordinator killed", 4, "nothing")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    kill(done, active_coordinator(stage) if rng.random() < 0.8 else host.coordinator())


@fault("coordinator frozen", 2, "nothing")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    """For longer than its lease: another one takes over, and the first one continues in the middle of a turn."""
    pid = active_coordinator(stage)
    freeze(done, [pid] if pid else [], rng.uniform(3, 7))


@fault("executor frozen", 3, "nothing")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    freeze(done, [rng.choice(host.executors())], rng.uniform(1, LEASE + 3))


@fault("executor out of memory", 3, "nothing")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    """It can allocate no memory for a while, whether it runs a job or our own code."""
    pid = rng.choice(host.executors())
    done.pids.append(pid)
    with suppress(ProcessLookupError, FileNotFoundError):
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        time.sleep(rng.uniform(0.2, 3))
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@fault("host frozen", 22, "host")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    """For longer than the leases of its jobs: they run on other hosts, and then this host reports its outcomes."""
    freeze(done, [host.process.pid, *host.children()], rng.uniform(LEASE + 1, LEASE + 5))


@fault("supervisor killed", 28, "host")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    children = set(host.children())
    kill(done, host.process.pid)
    children.update(children_of(stage.folder, host.process.pid))  # it may have forked another one since
    done.pids += children
    host.process.wait()
    deadline = time.monotonic() + 10  # immediate, unless the machine is busy
    while (left := [pid for pid in children if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    if left:
        stage.violations.append(f"{done.began:.3f} children {left} outlived the killed supervisor {host.process.pid}")
    host.start()


@fault("rolling restart", 48, "host")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    replace(stage, done, host)


@fault("clock wrong by an hour", 2, "host")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    """A rolling restart with a wrong clock, and another one with the right clock."""
    try:
        host.clock = rng.choice([-3600.0, 3600.0])
        replace(stage, done, host)
        time.sleep(rng.uniform(2, LEASE + 4))
    finally:
        host.clock = 0.0
        replace(stage, done, host)


def replace(stage: Stage, done: Fault, host: Host) -> None:
    """Sends SIGTERM to the old process when the new one is up."""
    old = host.process
    host.wait_until_up()
    host.start()
    host.wait_until_up()
    old.send_signal(signal.SIGTERM)
    try:
        code = old.wait(45)
    except Exception:
        old.kill()
        code = old.wait()
    if code:
        stage.violations.append(f"{done.began:.3f} a batchworker exited with {code} after SIGTERM")


@fault("creator killed", 3, "load")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    kill(done, stage.loads[-1].pid)
    stage.loads[-1].wait()
    stage.start_load()


@fault("Redis restarted with its dump", 2, "redis", loses=True)
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    stage.redis.client.save()
    shutil.copy(stage.redis.dump, stage.redis.folder / "older")
    time.sleep(rng.uniform(0, 0.3))
    stage.redis.stop(signal.SIGKILL)
    time.sleep(rng.uniform(0, 3))
    stage.redis.start()


@fault("Redis restarted empty", 4, "redis", loses=True)
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    stage.redis.stop(signal.SIGKILL)
    stage.redis.dump.unlink(missing_ok=True)
    time.sleep(rng.uniform(0, 3))
    stage.redis.start()


@fault("Redis rolled back to an older dump", 1, "redis", loses=True)
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    """To the dump of an earlier fault, or to one from some seconds ago."""
    older = stage.redis.folder / "older"
    if not older.exists():
        stage.redis.client.save()
        shutil.copy(stage.redis.dump, older)
        time.sleep(rng.uniform(1, 4))
        done.began = time.time()
    stage.redis.stop(signal.SIGKILL)
    shutil.copy(older, stage.redis.dump)
    stage.redis.start()
    older.unlink()


@fault("FLUSHALL", 1, "redis", loses=True)
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    stage.redis.client.flushall()


@fault("Redis paused", 1, "redis")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    milliseconds = int(rng.uniform(200, 4000))
    stage.redis.client.execute_command("CLIENT", "PAUSE", milliseconds, "ALL")
    time.sleep(milliseconds / 1000)


@fault("Redis read-only", 1, "redis")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    """As after a failover: a replica (READONLY), or a primary that has lost its replicas (NOREPLICAS)."""
    client = stage.redis.client
    if rng.random() < 0.5:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        time.sleep(rng.uniform(0.2, 3))
        client.execute_command("REPLICAOF", "NO", "ONE")
    else:
        client.config_set("min-replicas-to-write", 1)
        time.sleep(rng.uniform(0.2, 3))
        client.config_set("min-replicas-to-write", 0)


@fault("Redis full", 1, "redis")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    stage.redis.client.config_set("maxmemory", 1)
    time.sleep(rng.uniform(0.2, 3))
    stage.redis.client.config_set("maxmemory", 0)


@fault("Redis clients killed", 1, "redis")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    stage.redis.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@fault("database backends terminated", 14, "postgres")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    with stage.postgres.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid() AND random() < 0.6"
        )


@fault("database restarted", 2, "postgres")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    """An immediate shutdown, as in a power failure: it recovers at the start."""
    stage.postgres.stop(signal.SIGQUIT)
    time.sleep(rng.uniform(0, 2))
    stage.postgres.start()


@fault("jobs changed through RQ", 4, "nothing")
def _(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
    """As users do with RQ's commands and django-rq, on batch jobs too."""
    rq_actions.change_jobs(stage.redis.client, done.jobs, rng)


def cut_off(sides: tuple[int, ...]) -> Callable[..., None]:
    def run(stage: Stage, done: Fault, rng: random.Random, host: Host) -> None:
        assert stage.network is not None, "needs --network"
        done.pids += host.children()
        for side in sides:
            stage.network.cut(host.number, side)
        time.sleep(rng.uniform(2, LEASE + 8))
        for side in sides:
            stage.network.heal(host.number, side)

    return run


PARTITIONS = {
    "host cut off from Redis": (0,),
    "host cut off from the database": (1,),
    "host cut off from both": (0, 1),
}
for _name, _sides in PARTITIONS.items():
    fault(_name, 5, "host")(cut_off(_sides))
