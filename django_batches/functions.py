"""What may run as a job: module-level functions of installed apps, by their dotted path.

The path is judged twice: here when a job is added, and again in the worker, because a path that comes back from the
database or from Redis is data. It is never imported before its module is known to be allowed (the class of
CVE-2021-23727 and CVE-2026-45360: an import path as a remote command).
"""

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import FunctionType
from typing import Any

from django.apps import apps

from .conf import SETTING, settings
from .exceptions import FunctionNotAllowed
from .masking import MASK, is_sensitive, masked_value

MAX_PATH = 255
"""Characters of a dotted path, as the column has."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def path_of(func: Callable[..., Any] | str) -> str:
    """The canonical dotted path of `func`; raises `FunctionNotAllowed` where it may not run as a job."""
    if isinstance(func, str):
        return _canonical(_import_checked(func), func)
    return _canonical(func, getattr(func, "__qualname__", repr(func)))


@cache
def resolve(path: str) -> FunctionType:
    """The function of a canonical path; raises `FunctionNotAllowed`, or `ImportError` where it does not exist here."""
    module = path.rpartition(".")[0]
    if not _is_allowed(module, path):
        raise FunctionNotAllowed(_not_allowed(path, module))
    func = _attribute(import_module(module), path)
    if _canonical(func, path) != path:
        raise FunctionNotAllowed(f"{path} is {_canonical(func, path)} by its own name: use that path.")
    assert isinstance(func, FunctionType)
    return func


def bound_names(path: str, leading: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Binds a call to the function's signature, as Python would; raises `TypeError` naming the call.

    `leading` is how many arguments go before `args` (1 for a callback: the batch). Returns the positional names.
    """
    signature, names = _signature(path)
    try:
        signature.bind(*(None,) * leading, *args, **kwargs)
    except TypeError as error:
        call = _call(args, kwargs, lambda index: is_masked(path, leading + index))
        shown = ", ".join(part for part in ("batch" if leading else "", call) if part)
        raise TypeError(f"{path}({shown}): {error}; its signature is {signature}.") from None
    return names[leading:]


def is_masked(path: str, index: int) -> bool:
    """Whether the value of a positional argument must not be shown, by the name of its parameter.

    True where nobody can say: the function is not allowed, is not found here, or takes fewer arguments.
    """
    try:
        parameters = _signature(path)[0].parameters.values()
    except Exception:  # whatever a module of a user's does when it is imported
        return bool(settings().SENSITIVE_KWARGS)
    places = [each for each in parameters if each.kind in _POSITIONAL]
    rest = next((each for each in parameters if each.kind == inspect.Parameter.VAR_POSITIONAL), None)
    found = places[index] if index < len(places) else rest
    return is_sensitive(found.name) if found else bool(settings().SENSITIVE_KWARGS)


@cache
def _signature(path: str) -> tuple[inspect.Signature, list[str]]:
    signature = inspect.signature(resolve(path))
    return signature, list(signature.parameters)


def _import_checked(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if not module or not name:
        raise FunctionNotAllowed(f"{path!r} is no dotted path: write module.function, as in 'shop.tasks.resize'.")
    if not _is_allowed(module, path):
        raise FunctionNotAllowed(_not_allowed(path, module))
    try:
        return _attribute(import_module(module), path)
    except ImportError as error:
        raise FunctionNotAllowed(f"{path} cannot be imported ({error}): write module.function.") from error


def _attribute(module: Any, path: str) -> Any:
    try:
        return getattr(module, path.rpartition(".")[2])
    except AttributeError as error:
        raise ImportError(str(error)) from None


def _canonical(func: Any, shown: str) -> str:
    if not callable(func):
        raise FunctionNotAllowed(f"{shown} is not a function: pass a function or its dotted path.")
    module = getattr(func, "__module__", None) or type(func).__module__
    name = getattr(func, "__qualname__", type(func).__qualname__)
    path = f"{module}.{name}"
    if not _is_allowed(module, path):
        raise FunctionNotAllowed(_not_allowed(path, module))
    if not name.isidentifier() or not isinstance(func, FunctionType):
        raise FunctionNotAllowed(
            f"{path} cannot be found again by its path, because it is {_kind(func, name)}: "
            "define a function at the top level of a module."
        )
    if len(path) > MAX_PATH:
        raise FunctionNotAllowed(f"{path} is longer than {MAX_PATH} characters: give the function a shorter name.")
    if getattr(import_module(module), name, None) is not func:
        raise FunctionNotAllowed(f"{path} names another object than the one passed: give the function its own name.")
    return path


def _kind(func: Any, name: str) -> str:
    if "<lambda>" in name:
        return "a lambda"
    if "<locals>" in name:
        return "a function inside a function"
    if inspect.ismethod(func) or (inspect.isfunction(func) and "." in name):
        return "a method"
    return f"a {type(func).__name__}"


def _is_allowed(module: str, path: str) -> bool:
    homes = [config.name for config in apps.get_app_configs()]
    return path in settings().ALLOWED_FUNCTIONS or any(
        module == home or module.startswith(f"{home}.") for home in (*homes, *settings().ALLOWED_FUNCTIONS)
    )


def _not_allowed(path: str, module: str) -> str:
    return (
        f"{path} may not run as a job: its module {module} is in no installed app. "
        f'Add the app to INSTALLED_APPS, or "{path}" to {SETTING}["ALLOWED_FUNCTIONS"].'
    )


def _call(args: tuple[Any, ...], kwargs: dict[str, Any], is_hidden: Callable[[int], bool]) -> str:
    """The arguments of a wrong call as it was written, without the secret ones."""
    shown = [MASK if is_hidden(index) else repr(masked_value(value)) for index, value in enumerate(args)]
    shown += [f"{key}={MASK if is_sensitive(key) else repr(masked_value(value))}" for key, value in kwargs.items()]
    text = ", ".join(shown)
    return text if len(text) <= 80 else f"{text[:80]}…"
