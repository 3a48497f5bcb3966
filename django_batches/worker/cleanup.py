"""Restores the state of an executor after each job. RQ forks a process per job, so its users never had to.

Translation, time zone and other context variables need no restoring: each job runs in a context of its own.
"""

import logging
import os
import signal

# `signal.getsignal` converts each handler to an enum. A job would take 1.11 times as long (benchmarks.fast_paths).
from _signal import getsignal  # type: ignore[import-not-found]

from django.db import connections

logger = logging.getLogger("django_batches")

_SIGNALS = [signal.Signals[f"SIG{name}"] for name in ("INT", "TERM", "ALRM", "CHLD", "HUP", "PIPE", "USR1", "USR2")]


class Cleanup:
    """The state of this process when it was created, to restore after each job."""

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
    """Closes a connection that is broken or in a transaction. Keeps others open, whatever their age."""
    if connection.connection is None:
        return
    if connection.in_atomic_block or not connection.autocommit:
        logger.warning("A job left a transaction open on %r; it was rolled back.", connection.alias)
    elif not connection.errors_occurred or connection.is_usable():
        connection.errors_occurred = False
        # Check its health at the next use: the server may restart between two jobs.
        connection.health_check_enabled, connection.health_check_done = True, False
        return
    # Leave the atomic block first, or close() waits for its end, which never comes.
    connection.in_atomic_block = False
    connection.savepoint_ids = []
    connection.atomic_blocks = []
    connection.run_on_commit = []
    connection.closed_in_transaction = False  # or close() does nothing
    connection.close()
