"""Restores the state of an executor's process after each job. RQ's worker need not: it forks a process per job.

Context variables, such as the active translation and time zone, need no restoring: each job runs in its own context.
"""

import logging
import os
import signal

# `signal.getsignal` converts each handler to an enum: a job takes 1.11 times as long (benchmarks.fast_paths).
from _signal import getsignal  # type: ignore[import-not-found]

from django.db import connections

logger = logging.getLogger("django_batches")

_SIGNALS = [signal.Signals[f"SIG{name}"] for name in ("INT", "TERM", "ALRM", "CHLD", "HUP", "PIPE", "USR1", "USR2")]


class Cleanup:
    """The state that this process had when the object was created, to restore after each job."""

    def __init__(self) -> None:
        self._folder = os.getcwd()
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._handlers = [(signum, getsignal(signum)) for signum in _SIGNALS]

    def restore(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in self._handlers:
            if handler is not None and getsignal(signum) != handler:
                signal.signal(signum, handler)
        os.chdir(self._folder)
        os.umask(self._umask)
        for connection in connections.all(initialized_only=True):
            connection.queries_log.clear()
            _restore_connection(connection)


def _restore_connection(connection) -> None:  # type: ignore[no-untyped-def]
    """Closes a connection that is broken or in a transaction. Keeps others open, even beyond `CONN_MAX_AGE`."""
    if connection.connection is None:
        return
    if connection.in_atomic_block or not connection.autocommit:
        logger.warning("A job left a transaction open on %r; it was rolled back.", connection.alias)
    elif not connection.errors_occurred or connection.is_usable():
        connection.errors_occurred = False
        # Make Django check the connection at its next use: the server may restart between two jobs.
        connection.health_check_enabled, connection.health_check_done = True, False
        return
    # Leave the atomic block first: otherwise close() waits for the end of the block, which never comes.
    connection.in_atomic_block = False
    connection.savepoint_ids = []
    connection.atomic_blocks = []
    connection.run_on_commit = []
    connection.closed_in_transaction = False  # otherwise close() does nothing
    connection.close()
