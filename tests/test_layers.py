"""The house: imports go down only, and every statement that moves a status or a counter is in `transitions`."""

import ast
import re
from pathlib import Path

import django_batches

ROOT = Path(django_batches.__file__).parent

LAYERS = [
    ["states", "exceptions", "ids", "conf", "masking"],
    ["payloads", "options", "functions", "twins"],
    ["connection", "outcomes", "message", "describing", "broker"],
    ["transitions", "checks", "deploy_checks"],
    ["context", "querysets", "pace"],
    ["opening", "adding"],
    ["verbs"],
    ["models", "apps"],
    ["scripts", "judging", "execution", "tasks"],
    ["diagnosis", "family", "progress", "wording", "templatetags", "coordinator", "audit", "vitals"],
    ["worker", "views", "health", "metrics"],
    ["admin", "urls"],
    ["management", "testing"],
    ["pytest_plugin"],
]
"""From the bottom to the top; a module may import those of its own layer and below, without a circle."""


def layer_of(name):
    return next((index for index, names in enumerate(LAYERS) if name in names), None)


def modules():
    return [path for path in ROOT.rglob("*.py") if "migrations" not in path.parts]


def imports_of(path):
    """The modules of ours that a file imports, as the first name below the package; not those for types alone."""
    package = path.relative_to(ROOT.parent).with_suffix("").parts
    for node in ast.walk(without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level] if path.name != "__init__.py" else package[: -node.level]
            target = [*base, *(node.module or "").split(".")] if node.module else [*base]
            yield from ([target[1]] if len(target) > 1 and target[1] else [alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("django_batches."):
            yield node.module.split(".")[1]


def without_type_checking(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    return tree


def test_every_module_has_its_layer():
    homes = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in modules()} - {"__init__"}
    assert {name for name in homes if layer_of(name) is None} == set()


def test_imports_go_down_only():
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        if path.parent != ROOT or path.name != "__init__.py"
        for name in imports_of(path)
        if layer_of(name) is not None and layer_of(name) > layer_of(path.relative_to(ROOT).parts[0].removesuffix(".py"))
    ]
    assert upward == []


def test_no_module_of_ours_is_imported_inside_a_function():
    hidden = [
        f"{path.relative_to(ROOT)}:{inner.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom | ast.Import)
    ]
    assert hidden == []


def test_only_the_transitions_write_rows():
    writes = re.compile(r"\.(update|bulk_update|bulk_create|delete|create)\(|UPDATE \{|INSERT INTO|DELETE FROM")
    lease = ROOT / "coordinator" / "lease.py"  # who keeps the books is no status
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in modules()
        if "transitions" not in path.parts and path != lease
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if writes.search(line) and "def " not in line and "redis" not in line and "pipeline" not in line
    ]
    allowed = ("creating.create(", "super().delete(", "deleting.delete(", ".delete()", "steering.", "hashlib")
    assert [line for line in found if not any(words in line for words in allowed)] == []
