"""The verbs that add jobs and callbacks to a batch."""

from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.utils import timezone

from ..calls.arguments import dump_arguments
from ..calls.functions import Func, TaskLike, as_task, bound_names, framework, path_of, task_at
from ..calls.options import DEFAULT_QUEUE, Backoff, ErrorTypes, Options, RunAfter, Seconds, earliest_start
from ..database.inserting import NewJob
from ..database.uuid7 import uuid7
from ..exceptions import BatchError
from ..states import Event, JobStatus
from ..transitions import creating
from .block import FLUSH_AT, mark_as_written
from .decorators import alters_data
from .job import BatchJob

if TYPE_CHECKING:
    from .batch import Batch

P = ParamSpec("P")
T = TypeVar("T")
Items = Iterable[T] | AsyncIterable[T]


@alters_data
class AddingVerbs:
    """The verbs that a batch and the return value of `batch.using(...)` share."""

    @property
    def _adder(self) -> "Adder":
        raise NotImplementedError

    def using(
        self,
        *,
        queue: str | None = None,
        timeout: Seconds | None = None,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        no_retry: ErrorTypes | None = None,
        run_after: Seconds | datetime | None = None,
    ) -> "Adder":
        """Returns an object with the same verbs, which adds jobs and callbacks with the given options.

        `timeout` and `backoff` are in seconds or timedeltas. `run_after` is the earliest start: a datetime, or a delay
        in seconds or as a timedelta. The delay of a job begins when you add it, that of a callback with its event.
        Raises `TypeError` or `ValueError` for a wrong option.
        """
        old = self._adder
        options = old._options.using(
            queue=queue, timeout=timeout, max_attempts=max_attempts, backoff=backoff, no_retry=no_retry
        )
        after = old._run_after if run_after is None else earliest_start(run_after)
        return replace(old, _options=options, _run_after=after, _has_queue=old._has_queue or queue is not None)

    def enqueue(self, func: "Func[P]", /, *args: P.args, **kwargs: P.kwargs) -> "BatchJob":
        """Adds one job. Raises `FunctionNotAllowed`, `TypeError` or `ValueError` if the call is refused.

        In the open block the job is written together with the others. Elsewhere it is written at once, which raises
        `BatchFinished` if the batch has ended.

        A Django Task has a `queue_name` and a `run_after` of its own. The queue comes from `using`; without it, from
        the batch; if that is "default", from the Task. The `run_after` of `using` takes precedence over the Task's.
        A Task with a priority raises `ValueError`, because the jobs of a queue run in the order in which you add them.
        """
        job, task, new = add_job(self, func, args, kwargs)
        _announce(task, [new])
        return job

    def map(self, func: "Func[Concatenate[T, P]]", iterable: Iterable[T], /, *args: P.args, **kwargs: P.kwargs) -> int:
        """Adds a job `func(item, *args, **kwargs)` for each item, and returns how many. Reads the items lazily."""
        items = _iterable(iterable, "map")
        return self._adder._add_all(func, ((item, *args) for item in items), kwargs)

    def starmap(self, func: "Func[...]", iterable: Iterable[Iterable[Any]], /, *args: Any, **kwargs: Any) -> int:
        """Adds a job `func(*item, *args, **kwargs)` for each item, and returns how many. Reads the items lazily."""
        items = _iterable(iterable, "starmap")
        return self._adder._add_all(func, ((*_iterable(item, "starmap"), *args) for item in items), kwargs)

    async def aenqueue(self, func: "Func[P]", /, *args: P.args, **kwargs: P.kwargs) -> "BatchJob":
        """Asynchronous twin of `enqueue`."""
        return await sync_to_async(partial(self.enqueue, func, *args, **kwargs))()  # type: ignore[arg-type]

    async def amap(
        self, func: "Func[Concatenate[T, P]]", iterable: Items[T], /, *args: P.args, **kwargs: P.kwargs
    ) -> int:
        """Asynchronous twin of `map`; also takes asynchronous iterables."""
        return await _in_chunks(lambda items: self.map(func, items, *args, **kwargs), iterable)  # type: ignore[arg-type]

    async def astarmap(self, func: "Func[...]", iterable: Items[Iterable[Any]], /, *args: Any, **kwargs: Any) -> int:
        """Asynchronous twin of `starmap`; also takes asynchronous iterables."""
        return await _in_chunks(lambda items: self.starmap(func, items, *args, **kwargs), iterable)

    def on_success(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job once every job has succeeded."""
        self._adder._register(Event.SUCCESS, func, args, kwargs)

    def on_failure(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job when the first job fails for good; other jobs may still run."""
        self._adder._register(Event.FAILURE, func, args, kwargs)

    def on_finish(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job once the batch has ended, whatever its status."""
        self._adder._register(Event.FINISH, func, args, kwargs)

    def on_attempted(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job once every job has had an attempt (Sidekiq's `:complete`)."""
        self._adder._register(Event.ATTEMPTED, func, args, kwargs)


@dataclass(frozen=True)
class Adder(AddingVerbs):
    """Adds jobs and callbacks to a batch with certain options; the return value of `batch.using(...)`."""

    _batch: "Batch"
    _options: Options
    _run_after: RunAfter | None = None
    _has_queue: bool = False
    """Whether `using` named the queue, so that a Task's queue does not apply."""

    @property
    def _adder(self) -> "Adder":
        return self

    def _resolve(self, func: Any) -> "tuple[str, TaskLike[...] | None, Adder]":
        """Returns the path of a function, its Task if it is one, and an adder with the Task's own options."""
        path = path_of(func)
        task = as_task(func) or task_at(path)
        if task is None:
            return path, None, self
        if task.priority:
            fix = "add it with task.using(priority=0), and give urgent jobs a queue of their own"
            raise ValueError(f"{path} has the priority {task.priority}, but jobs of a batch have none: {fix}.")
        adder = self
        if self._options.queue == DEFAULT_QUEUE and not self._has_queue:
            adder = replace(adder, _options=self._options.using(queue=task.queue_name))
        if self._run_after is None and task.run_after:
            adder = replace(adder, _run_after=earliest_start(task.run_after))
        return path, task, adder

    def _new_job(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NewJob:
        arguments = dump_arguments(args, kwargs, bound_names(path, 0, args, kwargs))
        now, after = timezone.now(), self._run_after
        due_at = now + after if isinstance(after, timedelta) else after
        status = JobStatus.SCHEDULED if due_at else JobStatus.CREATED
        return NewJob(
            uuid7(), path, arguments, **vars(self._options), created_at=now, due_at=due_at,
            batch_id=self._batch.pk, status=status.value,
        )  # fmt: skip

    def _add_all(self, func: Any, calls: Iterable[tuple[Any, ...]], kwargs: dict[str, Any]) -> int:
        path, task, adder = self._resolve(func)
        new = (adder._new_job(path, args, kwargs) for args in calls)
        block, count = self._batch._open_block, 0
        if block:
            for count, job in enumerate(new, start=1):  # noqa: B007
                block.add(job)
                _announce(task, [job])
            return count
        while chunk := list(islice(new, FLUSH_AT)):
            creating.add(self._batch.pk, chunk)
            _announce(task, chunk)
            count += len(chunk)
        return count

    def _register(self, event: Event, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        block = self._batch._open_block
        if not block or self._batch.sealed_at:
            raise BatchError(
                f"Call on_{event} inside `with Batch.open(...)`, before the batch is sealed: later, its event may "
                "have happened already."
            )
        _, _, adder = self._resolve(func)
        block.register(event, func, args, kwargs, adder._options, adder._run_after)


def add_job(
    verbs: AddingVerbs, func: Any, args: Any, kwargs: dict[str, Any]
) -> "tuple[BatchJob, TaskLike[...] | None, NewJob]":
    """Adds a job as `verbs.enqueue` does, but without the signal of the Tasks framework, which its backend sends."""
    path, task, adder = verbs._adder._resolve(func)
    new = adder._new_job(path, args, kwargs)
    job = BatchJob(**new._asdict())
    job.batch = adder._batch
    if block := adder._batch._open_block:
        block.add(new, job)
    else:
        mark_as_written(job, creating.add(adder._batch.pk, [new])["total"] - 1)
    return job, task, new


async def _in_chunks(add: Callable[[Iterable[T]], int], items: Items[T]) -> int:
    """Calls `add` with an iterable, or with chunks of an asynchronous one. Returns how many jobs were added."""
    if not isinstance(items, AsyncIterable):
        return await sync_to_async(add)(items)
    total, chunk = 0, []
    async for item in items:
        chunk.append(item)
        if len(chunk) == FLUSH_AT:
            total, chunk = total + await sync_to_async(add)(chunk), []
    return total + (await sync_to_async(add)(chunk) if chunk else 0)


def _announce(task: TaskLike[...] | None, jobs: Iterable[NewJob]) -> None:
    """Sends the Tasks framework's signal `task_enqueued` for each job, if its function is a Task."""
    if task is not None:
        framework().announce(task, jobs)


def _iterable(value: Any, verb: str) -> Any:
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        wanted = "an iterable of items" if verb == "map" else "an iterable of tuples of arguments"
        raise TypeError(f"{verb}: {value!r} is not iterable: pass {wanted}.")
    return value
