"""`pytest -n 2`: each process of the tests has a Redis and a folder of its own.

Tests empty their Redis, count its clients and listen to its channels. pytest-django gives each a database of its own.
"""

import os
from contextlib import ExitStack

import pytest

from example_project.servers import redis_server

_servers = ExitStack()


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests():
    """Around the others: pytest-django reads the settings here, and the settings the environment."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ.pop("REDIS_URL", None)  # that of all of them
        os.environ["REDIS_URL"] = _servers.enter_context(redis_server())
        os.environ["DATA_DIR"] = os.path.join(os.environ["DATA_DIR"], worker)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What was captured goes to another process, which takes no lone surrogate; some tests log one."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_unconfigure():
    _servers.close()
