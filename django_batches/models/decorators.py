"""Decorators for the methods of the models."""

from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import isfunction
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

P = ParamSpec("P")
T = TypeVar("T")
Owner = TypeVar("Owner", bound=type)


def alters_data(owner: Owner) -> Owner:
    """Keeps templates from calling the public methods of a class: `{{ batch.cancel }}` would cancel the batch."""
    for name, verb in vars(owner).items():
        function = getattr(verb, "__func__", verb)
        if isfunction(function) and not name.startswith("_"):
            function.alters_data = True  # type: ignore[attr-defined]
    return owner


def twin(verb: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Returns the asynchronous twin of a function or method, which runs it in Django's thread for synchronous code."""

    @wraps(verb)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await sync_to_async(verb)(*args, **kwargs)

    return call
