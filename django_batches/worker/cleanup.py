"""What one job must not leave to the next: RQ forks for every job, so its users never had to think of it.

Translation, time zone and other context variables are gone with the context each job runs in.
"""

import logging
import os
import signal

# Not signal.getsignal, which looks for an enum of each handler: nine times as slow, and eight are asked after a job.
from _signal import getsignal as handler_of  # type: ignore[import-not-found]

from django.db import connections

logger = logging.getLogger("django_batches")

_IGNORED = (signal.SIGINT, signal.SIGTERM)
_RESTORED = (*_IGNORED, signal.SIGALRM, signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2)


class Cleanup:
    """Puts back what a job may have changed in this process."""

    def __init__(self) -> None:
        self._folder = os.getcwd()
        self._umask = _umask()
        self._handlers = [(signum, handler_of(signum)) for signum in _RESTORED]

    def restore(self) -> None:
        """Called after each job."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in self._handlers:
            if handler is not None and handler_of(signum) != handler:
                signal.signal(signum, handler)
        if _folder() != self._folder:
            os.chdir(self._folder)
        os.umask(self._umask)
        for connection in connections.all(initialized_only=True):
            connection.queries_log.clear()
            _restore_connection(connection)


def _restore_connection(connection) -> None:  # type: ignore[no-untyped-def]
    """Closes a connection that a job left in a state; a healthy one stays open, whatever its age."""
    if connection.connection is None:
        return
    if connection.in_atomic_block or not connection.autocommit:
        logger.warning("A job left a transaction open on %r; it was rolled back.", connection.alias)
    elif not connection.errors_occurred or connection.is_usable():
        connection.errors_occurred = False
        # ProbeCache at the next use, and only then: the server may have been restarted between two jobs.
        connection.health_check_enabled, connection.health_check_done = True, False
        return
    # Not in a block any more, or close() would keep the object for the block that never ends.
    connection.in_atomic_block = False
    connection.savepoint_ids = []
    connection.atomic_blocks = []
    connection.run_on_commit = []
    connection.closed_in_transaction = False  # or close() would take it for closed already
    connection.close()


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask
