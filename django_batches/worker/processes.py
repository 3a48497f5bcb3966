"""Forked children: how one begins, ends, and dies with its parent."""

import ctypes
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from django.db import connections

logger = logging.getLogger("django_batches")

_PR_SET_PDEATHSIG = 1
_PAGE = os.sysconf("SC_PAGE_SIZE")


def fork(work: Callable[[], None], name: str) -> int:
    """Runs `work` in a child, which ignores the signals of its group and dies with this process; its process id."""
    connections.close_all()  # two processes on one connection would mix their answers
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, pass_over)
        os.register_at_fork(after_in_child=_be_killable)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        die_with(parent)
        random.seed()
        work()
        code = 0
    except BaseException:
        logger.exception("%s stopped on an error of its own.", name)
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def pass_over(signum: int, frame: object) -> None:
    """A Ctrl-C or a service manager signals the whole group; a child leaves when its supervisor says so.

    A handler and not SIG_IGN, which the programs that a job starts would inherit: nobody could terminate them.
    """


def _be_killable() -> None:
    # A process that a job forks (multiprocessing) is the job's to terminate.
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is pass_over:
            signal.signal(signum, signal.SIG_DFL)


def die_with(parent: int) -> None:
    """The kernel kills this process when its parent dies, so that no orphan runs a job beside its next run."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where it is gone or the system does not tell (only Linux does)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def warn_of_threads() -> None:
    """A thread started before the fork is missing in the children, and a lock it held stays locked there."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        logger.warning("Threads are alive before the fork (%s); start them lazily.", ", ".join(others))
