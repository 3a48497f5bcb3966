"""Helpers for processes: fork children that die with their parent, wait for signals, and measure memory."""

import ctypes
import logging
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from django.db import connections

logger = logging.getLogger("django_batches")

SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*SHUTDOWN_SIGNALS, signal.SIGCHLD, signal.SIGALRM)
"""The signals that the supervisor blocks and waits for."""
_PR_SET_PDEATHSIG = 1


def fork(work: Callable[[], None], name: str) -> int:
    """Runs `work` in a child process, which is killed if this process dies. Returns the child's process id."""
    connections.close_all()  # two processes must not share a connection
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for signum in SHUTDOWN_SIGNALS:
            signal.signal(signum, ignore_signal)
        os.register_at_fork(after_in_child=_reset_ignored_signals)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        die_with(parent)
        random.seed()
        work()
        code = 0
    except BaseException:
        logger.exception("%s failed with an unexpected error.", name)
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ignore_signal(signum: int, frame: object) -> None:
    """Does nothing. Ctrl-C and service managers signal the process group, but only the supervisor may stop a child.

    This is a handler, because programs that a job starts would inherit SIG_IGN, and could not be terminated.
    """


def _reset_ignored_signals() -> None:
    # A job must be able to terminate the processes that it forks, for example with multiprocessing.
    for signum in SHUTDOWN_SIGNALS:
        if signal.getsignal(signum) is ignore_signal:
            signal.signal(signum, signal.SIG_DFL)


def die_with(parent: int) -> None:
    """Makes the kernel kill this process when its parent dies. Its job must not run twice at once."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def wait_for_signal(seconds: float) -> int:
    """Waits for one of the blocked `SIGNALS` and returns it. Returns SIGALRM if none arrives within `seconds`.

    It does not use `sigtimedwait`. If SIGSTOP and SIGCONT interrupt that function until its timeout is over, it returns
    a signal number from uninitialised memory.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    received = signal.sigwait(SIGNALS)
    # A pending SIGALRM would end the next wait at once, and hide a SIGTERM, which has a higher number.
    signal.setitimer(signal.ITIMER_REAL, 0)
    return received


def resident_memory(pid: int) -> int:
    """Resident memory of a process in bytes; 0 if it has ended or the system has no /proc (only Linux has it)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def describe_exit(code: int) -> str:
    """Describes the exit code of a process. A negative code is the number of the signal that killed the process."""
    if code >= 0:
        return f"exit code {code}"
    names = {signum.value: signum.name for signum in signal.Signals}  # none for most real-time signals
    return f"signal {names.get(-code, -code)}"
