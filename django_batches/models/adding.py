"""The verbs that add jobs and callbacks to a batch, with given options."""

from collections.abc import AsyncIterable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.utils import timezone

from ..calls.arguments import dump_arguments
from ..calls.functions import Func, TaskLike, as_task, bound_names, framework, path_of, task_at
from ..calls.options import DEFAULT_QUEUE, Backoff, ErrorTypes, Options, RunAfter, Seconds
from ..calls.options import run_after as earliest
from ..database.uuid7 import uuid7
from ..exceptions import BatchError
from ..states import Event, JobStatus
from ..transitions import creating
from ..transitions.creating import NewJob
from .block import FLUSH_AT, written
from .job import BatchJob
from .twins import in_chunks

if TYPE_CHECKING:
    from .batch import Batch

P = ParamSpec("P")
T = TypeVar("T")


class Adder:
    """Adds jobs and callbacks to a batch with these options; what `batch.using(...)` returns."""

    def __init__(
        self, batch: "Batch", options: Options, after: RunAfter | None = None, *, has_queue: bool = False
    ) -> None:
        self._batch = batch
        self._options = options
        self._after = after
        self._has_queue = has_queue
        """`using` has named the queue."""

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
        """The same verbs with other options. `timeout` and `backoff` in seconds or as timedelta.

        `run_after`: not before this moment (a datetime), or so long after the job was added (a callback: after its
        event), in seconds or as timedelta.
        """
        options = self._options.using(queue, timeout, max_attempts, backoff, no_retry)
        after = self._after if run_after is None else earliest(run_after)
        return Adder(self._batch, options, after, has_queue=self._has_queue or queue is not None)

    def enqueue(self, func: "Func[P]", /, *args: P.args, **kwargs: P.kwargs) -> "BatchJob":
        """Adds one job. Raises `FunctionNotAllowed`, `TypeError` or `ValueError` with nothing written.

        In the open block it is written with the others; elsewhere at once, where it raises `BatchFinished` for a batch
        that has ended.

        Of a Django Task this also reads `queue_name` and `run_after`. The queue of `using` wins, then that of the
        batch unless it is "default", then the Task's; a `run_after` of `using` wins. A Task with a priority other than
        the default raises `ValueError`: within a queue the jobs run in the order they were added.
        """
        job, task, new = add_job(self, func, args, kwargs)
        _announce(task, [new])
        return job

    def map(
        self,
        func: "Func[Concatenate[T, P]]",
        iterable: Iterable[T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> int:
        """Adds one job per item, called `func(item, *args, **kwargs)`; returns how many. Streaming."""
        items = _items(iterable, "map")
        return self._add_all(func, ((item, *args) for item in items), kwargs)

    def starmap(self, func: "Func[...]", iterable: Iterable[Iterable[Any]], /, *args: Any, **kwargs: Any) -> int:
        """Adds one job per item, called `func(*item, *args, **kwargs)`; returns how many. Streaming."""
        items = _items(iterable, "starmap")
        return self._add_all(func, ((*_items(item, "starmap"), *args) for item in items), kwargs)

    async def aenqueue(self, func: "Func[P]", /, *args: P.args, **kwargs: P.kwargs) -> "BatchJob":
        """Asynchronous twin of `enqueue`."""
        return await sync_to_async(partial(self.enqueue, func, *args, **kwargs))()  # type: ignore[arg-type]

    async def amap(
        self,
        func: "Func[Concatenate[T, P]]",
        iterable: Iterable[T] | AsyncIterable[T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> int:
        """Asynchronous twin of `map`; takes asynchronous iterables too."""
        return await in_chunks(lambda items: self.map(func, items, *args, **kwargs), iterable)  # type: ignore[arg-type]

    async def astarmap(
        self,
        func: "Func[...]",
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        """Asynchronous twin of `starmap`; takes asynchronous iterables too."""
        return await in_chunks(lambda items: self.starmap(func, items, *args, **kwargs), iterable)

    def on_success(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job once every job has succeeded."""
        self._register(Event.SUCCESS, func, args, kwargs)

    def on_failure(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job when the first job has failed for good, while others go on."""
        self._register(Event.FAILURE, func, args, kwargs)

    def on_finish(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job once the batch has ended, whatever way."""
        self._register(Event.FINISH, func, args, kwargs)

    def on_attempted(self, func: "Func[Concatenate[Batch, P]]", /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `func(batch, *args, **kwargs)` as a job once every job has been tried (Sidekiq's `:complete`)."""
        self._register(Event.ATTEMPTED, func, args, kwargs)

    def _register(self, event: Event, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        block = self._batch.block
        if not (block and block.is_active) or self._batch.sealed_at:
            raise BatchError(
                f"on_{event} must be called inside `with Batch.open(...)`, before the batch is sealed: later it may "
                "have happened already."
            )
        _, _, adder = self._for(func)
        block.register(event, func, args, kwargs, adder._options, adder._after)

    def _add_all(self, func: Any, calls: Iterable[tuple[Any, ...]], kwargs: dict[str, Any]) -> int:
        path, task, adder = self._for(func)
        block = self._batch.block
        count = 0
        if block and block.is_active:
            for count, args in enumerate(calls, start=1):  # noqa: B007
                new = adder._judged(path, args, kwargs)
                block.add(new)
                _announce(task, [new])
            return count
        chunk: list[NewJob] = []
        for count, args in enumerate(calls, start=1):  # noqa: B007
            chunk.append(adder._judged(path, args, kwargs))
            if len(chunk) == FLUSH_AT:
                creating.add(self._batch.pk, chunk)
                _announce(task, chunk)
                chunk = []
        if chunk:
            creating.add(self._batch.pk, chunk)
            _announce(task, chunk)
        return count

    def _for(self, func: Any) -> "tuple[str, TaskLike[...] | None, Adder]":
        """The path of a function, the Task that it is, if any, and what adds it: with what the Task says besides."""
        path = path_of(func)
        task = as_task(func) or task_at(path)
        if task is None:
            return path, None, self
        if task.priority:
            fix = "add it with task.using(priority=0), and give what is urgent a queue of its own"
            raise ValueError(f"{path} has the priority {task.priority}, which jobs of a batch do not have: {fix}.")
        options, after = self._options, self._after
        if options.queue == DEFAULT_QUEUE and not self._has_queue:
            options = options.using(queue=task.queue_name)
        if after is None and task.run_after:
            after = earliest(task.run_after)
        return path, task, Adder(self._batch, options, after, has_queue=self._has_queue)

    def _judged(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NewJob:
        names = bound_names(path, 0, args, kwargs)
        options, now = self._options, timezone.now()
        return NewJob(
            uuid7(),
            path,
            dump_arguments(args, kwargs, names),
            options.queue,
            options.timeout,
            options.max_attempts,
            options.backoff,
            options.no_retry,
            now,
            now + self._after if isinstance(self._after, timedelta) else self._after,
        )


def add_job(
    adder: Adder, func: Any, args: Any, kwargs: dict[str, Any]
) -> "tuple[BatchJob, TaskLike[...] | None, NewJob]":
    """`adder.enqueue` without the signal of the Tasks framework, which its backend sends itself."""
    path, task, adder = adder._for(func)
    new = adder._judged(path, args, kwargs)
    status = JobStatus.SCHEDULED if new.due_at else JobStatus.CREATED
    job = BatchJob(batch=adder._batch, position=0, status=status, **new._asdict())
    block = adder._batch.block
    if block and block.is_active:
        block.add(new, job)
    else:
        written(job, creating.add(adder._batch.pk, [new])["total"] - 1)
    return job, task, new


def _announce(task: TaskLike[...] | None, jobs: Iterable[NewJob]) -> None:
    """Sends the Tasks framework's signal for jobs that were added."""
    if task is not None:
        framework().announce(task, jobs)


def _items(value: Any, verb: str) -> Any:
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        what = "an iterable of items" if verb == "map" else "an iterable of tuples of arguments"
        raise TypeError(f"{verb}: {value!r} is no iterable: pass {what}.")
    return value
