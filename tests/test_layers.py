"""The layout: wings import downward only, and only the transitions change a status or a counter."""

import ast
import re
from pathlib import Path

import django_batches

ROOT = Path(django_batches.__file__).parent

WINGS = [
    ["states", "exceptions", "conf"],
    ["calls"],
    ["database"],
    ["transport"],
    ["transitions"],
    ["models"],
    ["tasks"],
    ["execution"],
    ["coordinator"],
    ["worker", "monitoring", "checks"],
    ["admin", "templatetags", "views", "urls"],
    ["management", "testing", "pytest_plugin", "apps"],
]
"""From the bottom to the top. A module may import from its own layer and from those below."""

AT_CALL_TIME = {
    "apps.py": "the Tasks framework may not be installed",
    "execution/__init__.py": "RQ imports it before Django is set up",
    "pytest_plugin.py": "pytest imports it before Django is set up",
}
"""The modules that import one of ours inside a function, and why they must."""


def layer_of(name):
    return next((index for index, names in enumerate(WINGS) if name in names), None)


def modules():
    return [path for path in ROOT.rglob("*.py") if "migrations" not in path.parts]


def wing_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path):
    """The wings that a file imports at run time; imports for type checkers alone do not count."""
    package = path.relative_to(ROOT.parent).parts[:-1]
    for node in ast.walk(without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = [*base, *(node.module.split(".") if node.module else [])]
            yield from [target[1]] if len(target) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("django_batches."):
            yield node.module.split(".")[1]


def without_type_checking(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    return tree


def test_every_module_belongs_to_a_wing():
    assert {wing_of(path) for path in modules() if layer_of(wing_of(path)) is None} == {"__init__"}


def test_imports_go_downward_only():
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        if wing_of(path) != "__init__"
        for name in imports_of(path)
        if layer_of(name) is not None and layer_of(name) > layer_of(wing_of(path))
    ]
    assert upward == []


def test_modules_are_imported_at_the_top_of_a_file():
    hidden = {
        str(path.relative_to(ROOT))
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom | ast.Import)
    }
    assert hidden == set(AT_CALL_TIME)


def test_no_lookup_by_name_hides_an_import():
    """`__init__` is lazy (PEP 562), and `calls.functions` imports the functions of projects."""
    found = {
        str(path.relative_to(ROOT))
        for path in modules()
        if re.search(r"\b(get_model|import_module|import_string)\(", path.read_text())
    }
    assert found == {"__init__.py", "calls/functions.py", "checks/settings.py"}


def test_only_the_transitions_write_rows():
    writes = re.compile(r"\.(update|bulk_update|bulk_create|delete|create)\(|UPDATE \{|INSERT INTO|DELETE FROM")
    homes = ("transitions", "database")  # the statements of the transitions that differ between databases
    lease = ROOT / "coordinator" / "lease.py"  # which coordinator is active is not a status
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in modules()
        if not set(homes) & set(path.parts) and path != lease
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if writes.search(line) and "def " not in line and "redis" not in line and "pipeline" not in line
    ]
    allowed = ("creating.create(", "super().delete(", "deleting.delete(", ".delete()", "cancelling.", "hashlib")
    assert [line for line in found if not any(words in line for words in allowed)] == []


def test_the_root_stays_small_and_no_file_exceeds_300_lines():
    assert len(list(ROOT.glob("*.py"))) <= 12
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in sizes.items() if lines > 300} == {}


def test_only_the_database_wing_tests_the_vendor():
    found = {str(path.relative_to(ROOT)) for path in modules() if re.search(r"\bvendor\b", path.read_text())}
    assert {name for name in found if not name.startswith("database/")} == set()
