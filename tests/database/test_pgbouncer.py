"""PgBouncer in transaction mode between us and PostgreSQL: two statements may be served by two sessions.

Runs if `pgbouncer` is on the PATH. All processes share two sessions, so each gets those of the others.
"""

import os
import shutil
import signal
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.db import connection, transaction

from django_batches import Batch
from django_batches.transitions import repairing
from example_project.servers import as_unprivileged_user, free_port, server, temporary_folder

from .. import tasks

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not shutil.which("pgbouncer"), reason="pgbouncer is not on the PATH"),
]

CONFIG = """
[databases]
* = host={HOST} port={PORT} user={USER}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
"""


@contextmanager
def pgbouncer():
    """Starts a PgBouncer for the PostgreSQL of the tests; yields its port."""
    with temporary_folder(is_public=True) as folder:
        port, config = free_port(), folder / "pgbouncer.ini"
        config.write_text(CONFIG.format(port=port, **settings.DATABASES["default"]))
        owner = as_unprivileged_user(folder) if os.geteuid() == 0 else {}
        command = [shutil.which("pgbouncer"), config]
        with server("PgBouncer", command, folder, ready=b"process up:", ended_by=signal.SIGINT, **owner):
            yield port


@pytest.fixture
def through_pgbouncer(transactional_db, monkeypatch):
    """Connects this process, and the workers that it starts, through PgBouncer."""
    with pgbouncer() as port:
        url = urlsplit(os.environ["DATABASE_URL"])
        monkeypatch.setenv("DATABASE_URL", url._replace(netloc=f"{url.username}@127.0.0.1:{port}").geturl())
        connection.close()
        before = connection.settings_dict["PORT"]
        connection.settings_dict["PORT"] = str(port)
        yield
        connection.close()
        connection.settings_dict["PORT"] = before


def test_batches_run_from_end_to_end(through_pgbouncer, start_worker, ledger):
    worker = start_worker("--workers", 2)
    with Batch.open("More than one chunk", max_attempts=2) as batch:
        batch.on_success(tasks.told, ledger.path)
        batch.map(tasks.ok, range(2_500))
        batch.enqueue(tasks.flaky, f"{ledger.path}.flaky", 1)
    with transaction.atomic(), Batch.open("Fails") as failing:
        failing.enqueue(tasks.boom)
    assert batch.wait(60) and failing.wait(60)
    assert (batch.status, failing.status) == ("succeeded", "failed")
    assert ledger.lines == [":succeeded:2501/2501"]
    assert list(batch.results())[:2500] == list(range(2_500))
    assert failing.retry_failed() == 1 and failing.wait(60)
    with Batch.open("A tree") as tree:
        tree.enqueue(tasks.sort, [5, 3, 9, 1, 7])
    assert tree.wait(60) and tree.result == [[1, 3, 5, 7, 9]]
    assert [repairing.repair_counters(each.pk) for each in (batch, failing, tree)] == [False] * 3
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
