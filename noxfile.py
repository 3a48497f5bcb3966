"""Runs the tests with the lowest and the newest supported versions of everything.

    make test-all                   every session, on SQLite and PostgreSQL
    .venv/bin/nox -s newest         one session
    .venv/bin/nox -s newest -- -m "not slow"    with other options for pytest
    DATABASES=sqlite .venv/bin/nox -s oldest    on one database only

A session uses the newest suitable Python on this machine: on the PATH, in a pyenv folder, or in a sibling of a
folder on the PATH (versions/3.11.7/bin, versions/3.13.0/bin).
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PYTHONS = ["3.14", "3.13", "3.12", "3.11"]
SERVERS = [sys.executable, "-m", "example_project.servers"]
"""Run by the Python of nox, because the newest Pythons have no wheel with a Redis server."""
RUNTIME = ["--extra", "cli", "--extra", "demo", "--extra", "prometheus", "--extra", "tasks"]
PARALLEL = ["-n", "4", "--dist", "worksteal"]

nox.options.default_venv_backend = "uv"
# uv bundles certificates, but behind a proxy those of the machine are needed.
os.environ.setdefault("UV_SYSTEM_CERTS", "1")


@functools.cache
def python(*versions: str) -> str:
    """Return the path of the first version on this machine, else the first version, which nox reports as missing."""
    beside = [Path(folder).parent.parent for folder in os.environ["PATH"].split(os.pathsep)]
    folders = {Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions", *beside}
    for version in versions:
        further = [str(path) for folder in folders for path in folder.glob(f"{version}.*/bin/python")]
        for program in (f"python{version}", *sorted(further, reverse=True)):
            if found := path_of(program, version):
                return found
    return versions[0]


def path_of(program: str, version: str) -> str | None:
    """Return the path of a program if it runs. A pyenv shim on the PATH fails if its version is not selected."""
    code = "import sys; print(sys.executable, sys.version_info[:2], sys.implementation.name, sep='|')"
    try:
        said = subprocess.run([program, "-c", code], capture_output=True, text=True, timeout=30).stdout.strip()
    except OSError:
        return None
    path, _, rest = said.partition("|")
    return path if rest == f"({version.replace('.', ', ')})|cpython" else None


OLDEST = python("3.11")


@nox.session(python=OLDEST)
def oldest(session: nox.Session) -> None:
    """Python 3.11, Django 5.2.0 and the lowest version of every dependency in pyproject.toml."""
    lowest = Path(session.create_tmp()).resolve() / "lowest.txt"
    options = ["--quiet", "--resolution", "lowest-direct", "--no-header", "--no-annotate", "--output-file", str(lowest)]
    session.run("uv", "pip", "compile", *options, *RUNTIME, "pyproject.toml", external=True)
    install(session, "--constraint", str(lowest))
    test(session)


@nox.session(python=python("3.12", "3.13"))
def between(session: nox.Session) -> None:
    """Django 6.0, and the newest version of everything else."""
    install(session, "django~=6.0.0")
    test(session)


@nox.session(python=python(*PYTHONS))
def newest(session: nox.Session) -> None:
    """The newest Python, the newest Django for it, and the newest version of everything else."""
    if session.python == OLDEST:
        session.skip("this machine has no Python 3.12 or newer, so Django 6 was NOT tested")
    install(session, "--upgrade")
    test(session)


def install(session: nox.Session, *options: str) -> None:
    session.install(*options, "--editable", ".[test]")
    names = "import sys, django, redis, rq; print(sys.version, django.__version__, redis.__version__, rq.__version__)"
    session.run("python", "-c", names)


def test(session: nox.Session) -> None:
    for database in os.environ.get("DATABASES", "sqlite,postgresql").split(","):
        options = ["--postgres"] if database == "postgresql" else []
        session.run(*SERVERS, *options, "--", "python", "-m", "pytest", *PARALLEL, *session.posargs, external=True)
    if os.environ.get("DATABASES") == "postgresql":
        # The browser tests run on SQLite only, and Django's admin differs between versions.
        session.run(*SERVERS, "--", "python", "-m", "pytest", "tests/browser", "-m", "not slow", external=True)
