"""A Redis and a PostgreSQL that can be killed and restarted with their data."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from example_project import servers
from example_project.processes import Process, running, stop

from . import network

FSYNC = "CHAOS_FSYNC"


class Server:
    """A server that keeps its port and its data across restarts."""

    def __init__(self, name: str, command: list[object], folder: Path, ended_by: int, **owner: Any) -> None:
        self.name, self.command, self.folder, self.ended_by, self.owner = name, command, folder, ended_by, owner
        self.process: Process | None = None
        self._block = ExitStack()

    def start(self) -> None:
        log = self.folder / "log"
        self._block = ExitStack()
        file = self._block.enter_context(log.open("wb"))
        options = {"stdout": file, "stderr": file, "cwd": self.folder, **self.owner}
        self.process = self._block.enter_context(running(self.command, ended_by=self.ended_by, **options))
        servers.wait_until_ready(self.name, self.process, log)

    def stop(self, signum: int | None = None) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            stop(self.process, signum or self.ended_by)
        self._block.close()


def addresses(name: str) -> list[str]:
    """Where a server listens: on localhost, and on its bridge if the hosts have namespaces."""
    return ["127.0.0.1", network.ADDRESSES[name]] if os.environ.get(network.INSIDE) else ["127.0.0.1"]


class RedisServer(Server):
    """Writes a dump only on `SAVE`."""

    def __init__(self, folder: Path) -> None:
        self.port = servers.free_port()
        command = [
            servers.redis_program(), "--port", self.port, "--bind", *addresses("redis"), "--save", "", "--dir", folder,
            "--maxmemory-policy", "noeviction", "--protected-mode", "no",
        ]  # fmt: skip
        super().__init__("Redis", command, folder, signal.SIGTERM)
        self.url = f"redis://127.0.0.1:{self.port}/15"
        self.client = Redis.from_url(self.url, socket_timeout=20, retry=Retry(NoBackoff(), 0))

    @property
    def dump(self) -> Path:
        return self.folder / "dump.rdb"


class PostgresServer(Server):
    """Records the time of each commit. Without fsync by default: processes crash here, not the machine."""

    def __init__(self, folder: Path) -> None:
        self.port, is_root = servers.free_port(), os.geteuid() == 0
        initdb, postgres = servers.postgres_programs(folder)
        owner = servers.as_unprivileged_user(folder) if is_root else {}
        data = folder / "data"
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        servers.initialise([initdb, "-D", data, *options], folder, owner)
        command = [
            postgres, "-D", data, "-p", self.port, "-h", ",".join(addresses("postgres")), "-k", "",
            "-c", "track_commit_timestamp=on", "-c", f"fsync={'on' if os.environ.get(FSYNC) else 'off'}",
        ]  # fmt: skip
        with (data / "pg_hba.conf").open("a") as file:
            file.write("host all all 10.88.0.0/16 trust\n")  # the namespaces of `network`
        super().__init__("PostgreSQL", command, folder, signal.SIGINT, **owner)
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True, application_name="chaos", connect_timeout=5)
