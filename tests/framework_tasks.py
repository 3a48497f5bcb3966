"""Tasks of the framework, Django's own or the backport."""

import posixpath

from rq import Retry

from django_batches import Batch, current_batch, current_job
from django_batches.exceptions import BatchCancelled

from . import tasks

try:
    from django.tasks import task, task_backends
    from django.tasks.signals import task_enqueued, task_finished, task_started
except ModuleNotFoundError:
    from django_tasks import task, task_backends
    from django_tasks.signals import task_enqueued, task_finished, task_started

__all__ = ["task_backends", "task_enqueued", "task_finished", "task_started"]


@task
def add(one, other=0):
    return one + other


@task(queue_name="images")
async def add_async(one, other=0):
    return one + other


@task(takes_context=True)
def tell(context, value=None):
    result = context.task_result
    return [context.attempt, result.id, result.worker_ids[-1], result.args, str(current_job().pk), value]


@task(takes_context=True)
async def tell_async(context):
    return context.attempt


@task(takes_context=True)
def fail_twice(context):
    if context.attempt < 3:
        raise ValueError(f"attempt {context.attempt}")
    return context.attempt


@task
def boom(message="no"):
    raise ValueError(message)


@task
def retry_later():
    return Retry(max=1, interval=0)


@task
def find_it_cancelled():
    raise BatchCancelled("cancelled meanwhile")


@task
def leave():
    raise SystemExit("bye")


@task
def give(kind):
    return {"bytes": b"text", "lambda": lambda: None, "tuple": (1, (2,))}[kind]


@task(takes_context=True)
def told(context, batch, text=""):
    return [context.attempt, str(batch.pk), text]


@task
def enqueue_inside():
    """Enqueues on its own, and in the open block of a child batch."""
    alone = add.enqueue(1)
    with Batch.open("child") as child:
        joined = add.enqueue(2)
    return [str(current_batch().pk), alone.id, joined.id, str(child.pk)]


@task
def sort_in_children(values):
    return tasks.sort(values)


@task(backend="immediate")
def elsewhere(path):
    tasks.append(path, "ran")


urgent = add.using(backend="immediate", priority=5)
stolen = task(posixpath.basename)


def plain(value=None):
    return value


task_of_plain = task(plain)


@task
def shadowed():
    pass


hidden = shadowed


@task
def shadowed():
    pass
