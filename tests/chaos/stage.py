"""The servers, batchworkers and load of a round."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from example_project.processes import Process
from tests.processes import ROOT, is_alive, wait_until

from . import ledger, network
from .servers import PostgresServer, RedisServer
from .worker import CLOCK

HOSTS = 3


class Host:
    """A batchworker that faults may kill and restart."""

    def __init__(
        self, number: int, command: list[str], environment: dict[str, str], folder: Path, prefix: list[str]
    ) -> None:
        self.number, self.folder = number, folder
        self._command, self._environment = [*prefix, sys.executable, "-m", *command], environment
        self.lock = threading.Lock()
        """The fault that uses this host holds it."""
        self.clock = 0.0
        """Error of the clock in seconds, for processes that start from now on."""
        self.process: Process
        self.start()

    def start(self) -> None:
        with (self.folder / f"host{self.number}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=ROOT, env=self._environment | {CLOCK: str(self.clock)},
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def children(self) -> list[int]:
        with suppress(FileNotFoundError):
            pid = self.process.pid
            return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def wait_until_up(self) -> None:
        """Before this, SIGTERM ends it as it ends any program."""
        wait_until(lambda: self.children() or self.process.poll() is not None, 60)

    def executors(self) -> list[int]:
        """The children whose names end in a number."""
        names = names_of_children(self.folder)
        return [pid for pid in self.children() if names.get(pid, "").rpartition(".")[2].isdigit()]

    def coordinator(self) -> int | None:
        names = names_of_children(self.folder)
        return next((pid for pid in self.children() if names.get(pid, "").endswith(".coordinator")), None)


def names_of_children(folder: Path) -> dict[int, str]:
    return {pid: name for _, pid, name in _children(folder)}


def children_of(folder: Path, supervisor: int) -> list[int]:
    """All children that it has ever started, even if it is dead."""
    return [pid for parent, pid, _ in _children(folder) if parent == supervisor]


def _children(folder: Path) -> list[tuple[int, int, str]]:
    path = folder / "children"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(parent), int(pid), name) for parent, pid, name in (line.split(" ", 2) for line in lines)]


class Stage:
    """Everything that a fault may break."""

    def __init__(
        self, folder: Path, redis: RedisServer, postgres: PostgresServer, seed: int, wires: network.Network | None
    ) -> None:
        self.folder, self.redis, self.postgres, self.seed = folder, redis, postgres, seed
        self.redis_lock, self.postgres_lock, self.load_lock = (threading.Lock() for _ in range(3))
        self.hosts: list[Host] = []
        self.loads: list[Process] = []
        self.violations: list[str] = []
        self.network = wires
        self._load: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {ledger.FOLDER: str(self.folder), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def start_hosts(self, count: int, command: list[str]) -> None:
        environment = self.environment
        if self.network:
            for name, address in network.ADDRESSES.items():
                variable = {"redis": "REDIS_URL", "postgres": "DATABASE_URL"}[name]
                environment[variable] = environment[variable].replace("127.0.0.1", address)
        self.hosts = [
            Host(number, command, environment, self.folder, self.network.prefix(number) if self.network else [])
            for number in range(count)
        ]

    def start_load(self, *command: str) -> None:
        """Starts the load, by default with the command of the last one, and with a seed of its own."""
        self._load = command or self._load
        with (self.folder / "load.log").open("ab") as log:
            command = (sys.executable, "-m", *self._load, str(self.seed * 1000 + len(self.loads)))
            self.loads.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
                )
            )

    def end_load(self, seconds: float = 60) -> None:
        (self.folder / "enough").touch()
        stop_within(self.loads[-1], seconds, self.violations)

    def end_hosts(self) -> None:
        for host in self.hosts:
            host.wait_until_up()
            host.process.send_signal(signal.SIGTERM)
        for host in self.hosts:
            stop_within(host.process, 40, self.violations)

    def restart_dead_hosts(self) -> None:
        """A batchworker must not exit unless a fault stops it."""
        for host in self.hosts:
            if host.lock.acquire(blocking=False):
                code = host.process.poll()
                if code is not None:
                    self.violations.append(f"{time.time():.3f} host{host.number} exited unexpectedly with {code}")
                    host.start()
                host.lock.release()

    def orphans(self) -> list[int]:
        """Living processes of this round, which all inherit its folder in their environment."""
        mark = f"{ledger.FOLDER}={self.folder}".encode()
        return [pid for pid in all_processes() if pid != os.getpid() and mark in environment_of(pid) and is_alive(pid)]

    def kill_all(self) -> None:
        for pid in self.orphans():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def stop_within(process: Process, seconds: float, violations: list[str]) -> None:
    """Waits for the exit of a process after SIGTERM; kills it after the timeout."""
    try:
        code = process.wait(seconds)
        if code:
            violations.append(f"{process.args[2]} exited with code {code}")  # type: ignore[index]
    except subprocess.TimeoutExpired:
        violations.append(f"{process.args[2]} did not exit within {seconds} s")  # type: ignore[index]
        process.kill()
        process.wait()


def all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


@contextmanager
def stage(folder: Path, seed: int) -> Iterator[Stage]:
    """Starts the servers; at the end, kills all processes of the round."""
    for name in ("redis", "postgres"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    wires = network.Network(HOSTS) if os.environ.get(network.INSIDE) else None  # first: the servers listen on them
    redis, postgres = RedisServer(folder / "redis"), PostgresServer(folder / "postgres")
    built = Stage(folder, redis, postgres, seed, wires)
    try:
        redis.start()
        postgres.start()
        os.environ |= {
            "REDIS_URL": redis.url,
            "DATABASE_URL": postgres.url,
            "TEST_DATABASE_NAME": "postgres",
            "DATA_DIR": str(folder),
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        }
        yield built
    finally:
        built.kill_all()
        redis.stop()
        postgres.stop(signal.SIGQUIT)


def new_folder(parent: Path | None) -> Path:
    """A new folder for a round. Every user may enter it, because PostgreSQL does not run as root."""
    folder = (parent or Path("/tmp")) / f"chaos-{os.getpid()}-{time.time_ns() % 10**9}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
