"""Decides what may run as a job: module-level functions and Django Tasks of installed apps, by their dotted path.

Whoever can write to the database or to Redis can change a path. The worker therefore checks each path again before it
imports a module. CVE-2021-23727 and CVE-2026-45360 are examples of import paths that were used as remote commands.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from types import FunctionType
from typing import Any, ParamSpec, Protocol, runtime_checkable

from django.apps import apps

from ..conf import SETTING, settings
from ..exceptions import FunctionNotAllowed
from .masking import MASK, is_sensitive, masked_value

MAX_PATH = 255
"""The longest dotted path that the column can store, in characters."""

P = ParamSpec("P")
_load_framework: Callable[[], Any]
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@runtime_checkable
class TaskLike(Protocol[P]):
    """A Task of `django.tasks` or of its backport. This is a protocol because neither has to be installed."""

    @property
    def func(self) -> Callable[..., object]: ...
    @property
    def priority(self) -> int: ...
    @property
    def queue_name(self) -> str: ...
    @property
    def run_after(self) -> datetime | None: ...
    @property
    def takes_context(self) -> bool: ...
    @property
    def module_path(self) -> str: ...
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> object: ...


Func = Callable[P, object] | TaskLike[P] | str
"""A function, a Task, or the dotted path of one.

A method that passes a `Func` on needs a `type: ignore`, because mypy 2.4 does not forward a Protocol's parameters.
"""


def path_of(func: "Func[...]") -> str:
    """Returns the canonical dotted path of `func`. Raises `FunctionNotAllowed` if it may not run as a job."""
    if not isinstance(func, str):
        return _canonical(func, getattr(func, "__qualname__", repr(func)))
    module, _, name = func.rpartition(".")
    if not module or not name:
        raise FunctionNotAllowed(f"{func!r} is not a dotted path: write module.function, as in 'shop.tasks.resize'.")
    try:
        return _canonical(_load(func), func)
    except ImportError as error:
        raise FunctionNotAllowed(f"{func} cannot be imported ({error}): write module.function.") from error


@cache
def resolve(path: str) -> FunctionType:
    """Returns the function at a canonical path, or the function of the Task at this path.

    Raises `FunctionNotAllowed`, or `ImportError` if the path does not exist on this machine.
    """
    function = _function_of(_load_canonical(path))
    assert isinstance(function, FunctionType)
    return function


@cache
def task_at(path: str) -> TaskLike[...] | None:
    """Returns the Task at a canonical path, or None for a plain function. Raises the same as `resolve`."""
    return as_task(_load_canonical(path))


def as_task(func: Any) -> TaskLike[...] | None:
    return func if not isinstance(func, FunctionType | str) and isinstance(func, TaskLike) else None


def load_framework_by(load: Callable[[], Any]) -> None:
    """Registers the function that imports `django_batches.tasks`. The app calls this once, when it is ready."""
    global _load_framework
    _load_framework = load


def framework() -> Any:
    """Imports `django_batches.tasks`. Call this only for a Task: the framework may not be installed otherwise."""
    return _load_framework()


def bound_names(path: str, leading: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Checks a call against the function's signature, and returns the names of the positional `args`.

    `leading` is how many arguments come before `args`: 1 for a callback, which gets the batch, otherwise 0. The context
    of a Task does not count. Raises `TypeError` with a message that masks sensitive arguments.
    """
    signature, names, context = _signature(path)
    before = [*context, *["batch"] * leading]
    try:
        signature.bind(*before, *args, **kwargs)
    except TypeError as error:
        call = _call(args, kwargs, lambda index: is_masked(path, leading + index))
        shown = ", ".join(part for part in (*before, call) if part)
        raise TypeError(f"{path}({shown}): {error}; its signature is {signature}.") from None
    return names[len(before) :]


@cache
def _signature(path: str) -> tuple[inspect.Signature, list[str], list[str]]:
    signature, task = inspect.signature(resolve(path)), task_at(path)
    return signature, list(signature.parameters), ["context"] if task and task.takes_context else []


def exists(path: str) -> bool:
    """Whether this machine has the module of a path. Does not import the module, because it may not be allowed."""
    places: Sequence[str] | None = None
    names = path.split(".")[:-1]
    for index in range(len(names)):
        spec = PathFinder.find_spec(".".join(names[: index + 1]), places)
        if spec is None:
            return names[0] in sys.builtin_module_names
        places = spec.submodule_search_locations or []
    return bool(names)


def is_masked(path: str, index: int) -> bool:
    """Whether to mask a positional argument, because its name is sensitive or unknown.

    The name is unknown if the function is not allowed, does not exist here, or takes fewer arguments.
    """
    names: list[str] = []
    with suppress(Exception):  # importing a module of the project may raise anything
        signature, _, context = _signature(path)
        parameters = list(signature.parameters.values())[len(context) :]
        names = [each.name for each in parameters if each.kind in _POSITIONAL][index : index + 1]
        names = names or [each.name for each in parameters if each.kind == inspect.Parameter.VAR_POSITIONAL]
    return is_sensitive(names[0]) if names else bool(settings().SENSITIVE_KWARGS)


def _load_canonical(path: str) -> Any:
    found = _load(path)
    if _canonical(found, path) != path:
        raise FunctionNotAllowed(f"{path} is another name of {_canonical(found, path)}: use that path.")
    return found


def _load(path: str) -> Any:
    """Imports the object at a path, if it is allowed. Raises `FunctionNotAllowed` or `ImportError`."""
    module, _, name = path.rpartition(".")
    _check_allowed(module, path)
    try:
        return getattr(import_module(module), name)
    except AttributeError as error:
        raise ImportError(str(error)) from None


def _check_allowed(module: str, path: str) -> None:
    allowed = settings().ALLOWED_FUNCTIONS
    homes = [*(config.name for config in apps.get_app_configs()), *allowed]
    if path not in allowed and not any(f"{module}.".startswith(f"{home}.") for home in homes):
        raise FunctionNotAllowed(
            f"{path} may not run as a job: its module {module} is in no installed app. "
            f'Add the app to INSTALLED_APPS, or "{path}" to {SETTING}["ALLOWED_FUNCTIONS"].'
        )


def _function_of(func: Any) -> Any:
    task = as_task(func)
    return func if task is None else task.func


def _canonical(given: Any, shown: str) -> str:
    func = _function_of(given)
    if not callable(func):
        raise FunctionNotAllowed(f"{shown} is not a function: pass a function or its dotted path.")
    module = getattr(func, "__module__", None) or type(func).__module__
    name = getattr(func, "__qualname__", type(func).__qualname__)
    path = f"{module}.{name}"
    _check_allowed(module, path)
    if not name.isidentifier() or not isinstance(func, FunctionType):
        raise FunctionNotAllowed(
            f"{path} cannot be imported by its path, because it is {_kind(func, name)}: "
            "define a function at the top level of a module."
        )
    if len(path) > MAX_PATH:
        raise FunctionNotAllowed(f"{path} is longer than {MAX_PATH} characters: give the function a shorter name.")
    _check_same(given, getattr(import_module(module), name, None), path)
    return path


def _check_same(given: Any, found: Any, path: str) -> None:
    """Checks that the path leads to what was passed, or to the Task from which `using()` made it."""
    if found is given or (as_task(given) and as_task(found) and found.func is given.func):
        return
    if as_task(found) and found.func is given:
        fix = "pass the Task itself"
    elif as_task(given) and not as_task(found):
        fix = "decorate the function with @task, so that its name is that of the Task"
    else:
        fix = "give the function its own name"
    raise FunctionNotAllowed(f"{path} names another object than the one passed: {fix}.")


def _kind(func: Any, name: str) -> str:
    if "<lambda>" in name:
        return "a lambda"
    if "<locals>" in name:
        return "a function inside a function"
    if inspect.ismethod(func) or (inspect.isfunction(func) and "." in name):
        return "a method"
    return f"a {type(func).__name__}"


def _call(args: tuple[Any, ...], kwargs: dict[str, Any], is_hidden: Callable[[int], bool]) -> str:
    """Shows the arguments of a call as Python source, with sensitive ones masked."""
    shown = [MASK if is_hidden(index) else repr(masked_value(value)) for index, value in enumerate(args)]
    shown += [f"{key}={MASK if is_sensitive(key) else repr(masked_value(value))}" for key, value in kwargs.items()]
    text = ", ".join(shown)
    return text if len(text) <= 80 else f"{text[:80]}…"
