"""Functions that run as jobs in the cases."""

import os
import signal

from django_batches import current_batch, current_job

from .tasks import append, ok


def dies_once(path):
    append(path, "run")
    if current_job().losses == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def adds_siblings_and_dies_half_way(path, count):
    """A second run would add them again, as documented: siblings are at-least-once."""
    append(path, "run")

    def values():
        for value in range(count):
            if value == count // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield value

    return current_batch().map(ok, values())


def callback_dies_once(batch, path):
    dies_once(path)


def adds_to_its_ended_batch(batch):
    batch.enqueue(ok)
