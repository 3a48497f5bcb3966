"""Stand-ins for names that the guides' code blocks use without defining them: jobs, and values.

A block runs in the namespace of this module, which is in an installed app, so its functions can be found by path.
"""

import ast
import builtins
from contextlib import contextmanager

from django_batches.calls import functions

VERBS = {"enqueue", "map", "starmap", "aenqueue", "amap", "astarmap"}
VERBS |= {"on_success", "on_failure", "on_finish", "on_attempted"}


class Value:
    """An object of the reader's project: a product, a request, an upload. Its `pk` is 7; it iterates over 1, 2, 3."""

    pk = 7

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Value()

    def __call__(self, *args, **kwargs):
        return Value()

    def __iter__(self):
        return iter([1, 2, 3])

    def __bool__(self):
        return False

    def __str__(self):
        return "7"


def job(*args, **kwargs):
    return len(args)


@contextmanager
def running(block, **given):
    """Runs a block; yields its namespace, and restores it afterwards."""
    tree = ast.parse(block.text)
    names = globals()
    before = dict(names)
    try:
        for name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(dir(builtins)):
            names.setdefault(name, Value())
        for name in passed_as_functions(tree):
            names[name] = _named(name)
        names.update(given)
        exec(compile(tree, block.name, "exec"), names)
        yield names
    finally:
        for name in names.keys() - before.keys():
            del names[name]
        names.update(before)
        for cached in (functions.resolve, functions.task_at, functions._signature):
            cached.cache_clear()


def passed_as_functions(tree):
    """Yields the names that a block passes as the function of a job or callback."""
    for node in ast.walk(tree):
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VERBS
        if is_call and node.args and isinstance(node.args[0], ast.Name):
            yield node.args[0].id


def _named(name):
    made = type(job)(job.__code__, globals(), name)
    made.__module__, made.__qualname__ = __name__, name
    return made
