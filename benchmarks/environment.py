"""Describes the machine, the servers and their settings, for the head of each table."""

import os
import platform
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from redis import Redis

SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")


def described() -> list[str]:
    """One line each for the machine, Python, Redis and the database."""
    lines = [machine(), f"Python {platform.python_version()}", redis()]
    return [*lines, database(os.environ.get("DATABASE_URL", ""))]


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({processor()}), {memory:.0f} GiB, {platform.system()} {platform.release()}"


def processor() -> str:
    """The processor's name, as reported by the kernel."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def redis() -> str:
    info = Redis.from_url(os.environ["REDIS_URL"]).info("server")
    return f"Redis {info['redis_version']}, no persistence"


def database(url: str) -> str:
    if not url:
        return "SQLite"
    parts = urlsplit(url)
    with psycopg.connect(host=parts.hostname, port=parts.port, user=parts.username, dbname=parts.path[1:]) as server:
        version = ".".join(str(part) for part in divmod(server.info.server_version, 10_000))
        shown = ", ".join(f"{name} {server.execute(f'SHOW {name}').fetchone()[0]}" for name in SETTINGS)
    return f"PostgreSQL {version}: {shown}"
