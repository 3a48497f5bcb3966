"""Asynchronous twins of the verbs that touch the database: each runs its verb in Django's thread for such code."""

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

CHUNK = 1_000


def twin(verb: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The asynchronous twin of a method."""

    @wraps(verb)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await sync_to_async(verb)(self, *args, **kwargs)

    return call


async def in_chunks(add: Callable[[Iterable[T]], int], items: Iterable[T] | AsyncIterable[T]) -> int:
    """Calls `add` with the items of an iterable, or with chunks of an asynchronous one; the sum of what it returns."""
    if not isinstance(items, AsyncIterable):
        return await sync_to_async(add)(items)
    total, chunk = 0, []
    async for item in items:
        chunk.append(item)
        if len(chunk) == CHUNK:
            total, chunk = total + await sync_to_async(add)(chunk), []
    return total + (await sync_to_async(add)(chunk) if chunk else 0)
