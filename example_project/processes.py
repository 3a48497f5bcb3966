"""Runs programs during a block, each in its own session. Afterwards, signals the program and waits for it."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Process = subprocess.Popen[bytes]
ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def running(
    command: Sequence[object], *, ended_by: int = signal.SIGTERM, grace: float = 30, **options: Any
) -> Iterator[Process]:
    """Runs a program during the block, then signals it. Kills it if it still runs `grace` seconds later."""
    # Its own session: Ctrl-C in the terminal reaches only us. Otherwise a worker would take our SIGTERM, which follows,
    # for the second one, which interrupts its jobs.
    process = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.DEVNULL, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        stop(process, ended_by, grace)


def stop(process: Process, signum: int = signal.SIGTERM, grace: float = 30) -> None:
    """Ends a process and waits for it; does nothing if it has ended."""
    process.send_signal(signum)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:  # too slow, or a second Ctrl-C during the wait
            process.kill()
            process.wait()


def run_in_foreground(command: Sequence[str], environment: dict[str, str]) -> int:
    """Runs a program in this terminal and forwards SIGTERM and SIGHUP to it. Returns its exit code as a shell would.

    Ctrl-C is not forwarded, because the terminal also sends it to the program.
    """
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise SystemExit(f"{command[0]} cannot be run: {error.strerror}.") from None
    try:
        handle(lambda *_: None, signal.SIGINT)
        handle(lambda *_: process.terminate(), *ENDING)
        code = process.wait()
    finally:
        stop(process)
    return 128 - code if code < 0 else code


def exit_on_signals() -> None:
    """Makes SIGTERM and SIGHUP unwind this process's blocks, as Ctrl-C does."""

    def leave(signum: int, frame: object) -> None:
        # Only once: a second signal must not interrupt the cleanup of the blocks.
        handle(lambda *_: None, *ENDING)
        sys.exit(128 + signum)

    handle(leave, *ENDING)


def handle(handler: Callable[[int, Any], object], *signals: signal.Signals) -> None:
    """Sets a signal handler unless the signal is ignored, as SIGHUP is under nohup."""
    for each in signals:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, handler)
