"""The code blocks of all pages compile, and the names in them exist."""

import ast
import builtins
import importlib
import inspect
import shlex

import pytest
from django.conf import LazySettings
from django.core.management import get_commands, load_command_class

from django_batches.calls.options import exponential
from django_batches.conf import settings as ours
from django_batches.management.commands.batches import VERBS
from django_batches.models import Batch, BatchJob
from django_batches.models.adding import Adder

from .pages import ROOT, blocks, pages

ELSEWHERE = {"celery", "myproject", "sentry_sdk"}
"""Packages that only code before a migration imports."""
OPTIONS = {"open": Batch.open, "using": Batch.using, "exponential": exponential, "wait": Batch.wait}
"""Functions whose keyword arguments are checked wherever a block calls them."""

ALL = [block for page in pages() for block in blocks(page)]
PYTHON = [block for block in ALL if block.language == "python"]


def named(block):
    return block.name


def tree_of(block):
    return ast.parse(block.text, block.name)


@pytest.mark.parametrize("block", PYTHON, ids=named)
def test_python_blocks_compile(block):
    # As in a notebook, `await` may be outside a function.
    compile(block.text, block.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", PYTHON, ids=named)
def test_imported_names_exist(block):
    for node in ast.walk(tree_of(block)):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] not in ELSEWHERE:
            if node.module == "django.tasks" and importlib.util.find_spec("django.tasks") is None:
                continue  # Django 5.2
            if node.module.split(".")[0] in ("shop", "orders"):
                continue  # the reader's own
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] in ELSEWHERE or importlib.import_module(alias.name)


@pytest.mark.parametrize("block", PYTHON, ids=named)
def test_attributes_of_batches_and_jobs_exist(block):
    """Checks `batch.…` and `Batch.…`, also on `current_batch()`, `batch.using(…)` and jobs."""
    homes = {"batch": Batch, "stage": Batch, "Batch": Batch, "current_batch": Batch, "using": Adder, "job": BatchJob}
    wrong = []
    for node in ast.walk(tree_of(block)):
        if isinstance(node, ast.Attribute):
            owner = _name(node.value)
            if owner in homes and not _has(homes[owner], node.attr):
                wrong.append(f"{owner}.{node.attr}")
    assert wrong == []


@pytest.mark.parametrize("block", PYTHON, ids=named)
def test_keyword_arguments_match_the_signature(block):
    wrong = []
    for node in ast.walk(tree_of(block)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in OPTIONS or (name == "open" and _name(getattr(node.func, "value", node.func)) != "Batch"):
            continue
        if name == "using" and _name(node.func.value) != "batch":
            continue
        taken = inspect.signature(OPTIONS[name]).parameters
        wrong += [f"{name}({keyword.arg})" for keyword in node.keywords if keyword.arg and keyword.arg not in taken]
    assert wrong == []


@pytest.mark.parametrize("block", PYTHON, ids=named)
def test_settings_exist(block):
    """Keys of `DJANGO_BATCHES` must exist; other names in capitals must be settings of Django."""
    known = set(dir(LazySettings().__class__)) | set(dir(importlib.import_module("django.conf.global_settings")))
    for node in tree_of(block).body:
        for target in getattr(node, "targets", []):
            name = _name(target)
            if name == "DJANGO_BATCHES" and isinstance(node.value, ast.Dict):
                keys = [key.value for key in node.value.keys]
                assert [key for key in keys if not hasattr(ours(), key)] == []
            elif name.isupper() and "settings.py" in block.text:
                assert name in known | {"TASKS", "RQ_QUEUES", "DJANGO_BATCHES"} or name.startswith("CELERY_")


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "console"], ids=named)
def test_commands_accept_the_options(block):
    commands = get_commands()
    for line in block.text.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if "manage.py" not in words:
            continue
        name, *rest = words[words.index("manage.py") + 1 :]
        if name not in commands:
            assert name == "rqworker"  # django-rq's, in the page on migrating from it
            continue
        if name in ("batches", "batchworker"):
            owner = commands[name]
            parser = load_command_class(owner, name).create_parser("manage.py", name)
            parser.parse_args(rest)
    if block.page.parent == ROOT / "docs" / "tutorial.md":
        assert block.text.startswith("$ ")


def test_every_block_has_a_language():
    known = {"python", "console", "pycon", "html", "ini", "yaml", "dockerfile", "json", "text", "sql", "toml"}
    other = [block.name for block in ALL if block.language not in known and not block.language.startswith("{")]
    assert [name for name in other if "redis.md" not in name] == []


def test_every_verb_of_the_command_is_documented():
    text = (ROOT / "docs" / "reference" / "commands.md").read_text()
    assert [name for name in VERBS if f"`{name}`" not in text] == []


def _name(node):
    """Returns `batch` for `batch.x`, `current_batch` for `current_batch().x`, `using` for `batch.using(…).x`."""
    if isinstance(node, ast.Call):
        return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return getattr(node, "id", "")


def _has(owner, name):
    if owner in (Batch, BatchJob):
        fields = {field.name for field in owner._meta.get_fields()} | {"callbacks", "jobs"}
        return name in fields or hasattr(owner, name)
    return hasattr(owner, name) or name in dir(builtins)
