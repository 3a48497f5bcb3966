"""The tables of the reference are whole: a setting, a check, an option or an exception that is not told fails here."""

import ast
import inspect
import re
from dataclasses import fields

import pytest
from django.core.management import load_command_class

from django_batches import conf, exceptions
from django_batches.management.commands.batches import VERBS
from django_batches.models import Batch
from django_batches.monitoring.health import Health

from .pages import DOCS, README, ROOT, table

COMMANDS = DOCS / "reference" / "commands.md"
COMMON = {"--help", "--settings", "--pythonpath", "--traceback", "--no-color", "--force-color", "--skip-checks"}
ADVICE = re.compile(r"^(Start one|Resume|No job can start|Its deadline was|If the|It will be cancelled if)")
COMMON |= {"--version", "--verbosity", "--json"}


def unquoted(cell):
    return cell.strip("`")


def test_every_setting_is_told_with_its_default():
    rows = {unquoted(row[0]): row[1] for row in table(DOCS / "reference" / "settings.md", "# Settings")}
    known = {field.name: field for field in fields(conf.Settings) if field.name != "unknown"}
    assert rows.keys() == known.keys()
    plain = {name: field.default for name, field in known.items() if isinstance(field.default, str | int)}
    told = {name: rows[name].strip("`").replace('"', "'") for name in plain if name != "NAMESPACE"}
    assert told == {name: repr(value) for name, value in plain.items() if name != "NAMESPACE"}
    assert tuple(re.findall(r'`"(\w+)"`', rows["SENSITIVE_KWARGS"])) == conf.SENSITIVE
    days = {age.days for age in conf.RETENTION.values()}
    assert days == {int(number) for number in re.findall(r"\d+", rows["RETENTION"])}


def test_every_check_is_told_and_no_id_stands_for_two_things():
    source = "\n".join(path.read_text() for path in (ROOT / "django_batches").rglob("*.py"))
    raised = re.findall(r'(?:id=|, )"(django_batches\.[EW]\d+)"', source)
    rows = [unquoted(row[0]) for row in table(DOCS / "reference" / "checks.md", "# System checks")]
    assert rows == sorted(set(raised))


def test_every_option_of_the_worker_is_told():
    parser = load_command_class("django_batches", "batchworker").create_parser("manage.py", "batchworker")
    told = {re.match(r"`(--[\w-]+)", row[0])[1] for row in table(COMMANDS, "## batchworker")}
    assert told == options_of(parser) - COMMON


@pytest.mark.parametrize("name", VERBS)
def test_every_option_of_a_verb_is_told(name):
    rows = {unquoted(row[0]): row for row in table(COMMANDS, "## batches")}
    assert rows.keys() == VERBS.keys()
    parser = load_command_class("django_batches", "batches").create_parser("manage.py", "batches")
    (verbs,) = [action for action in parser._actions if action.dest == "verb"]
    told = set(re.findall(r"`(--[\w-]+)", " ".join(rows[name][1:])))
    assert told == options_of(verbs.choices[name]) - COMMON


def test_every_health_check_is_documented():
    rows = table(DOCS / "guides" / "monitoring.md", "## Health")
    assert [unquoted(row[0]) for row in rows] == list(Health.NAMES)


def test_every_metric_is_told():
    source = (ROOT / "django_batches" / "monitoring" / "metrics.py").read_text()
    names = set(re.findall(r'"(django_batches_\w+)"', source))
    rows = table(DOCS / "guides" / "monitoring.md", "## Prometheus")
    told = {unquoted(row[0]).partition("{")[0].removesuffix("_total") for row in rows}
    assert told == names


def test_every_permission_is_told():
    own = {f"django_batches.{name}" for name, _ in Batch._meta.permissions}
    rows = {unquoted(row[0]) for row in table(DOCS / "reference" / "admin.md", "# Admin")}
    assert rows == own | {"django_batches.view_batch", "django_batches.delete_batch"}


def test_every_exception_has_a_docstring_and_comes_from_one_place():
    found = dict(inspect.getmembers(exceptions, inspect.isclass))
    assert found and all(kind.__doc__ and issubclass(kind, exceptions.BatchError) for kind in found.values())
    assert "automodule:: django_batches.exceptions" in (DOCS / "reference" / "api.md").read_text()


def test_every_log_line_is_told():
    """Each text that is logged as a warning or worse stands in the table of the operations page, by its fixed words."""
    page = (DOCS / "operations.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "django_batches").rglob("*.py"))
    logged = re.findall(r'logger\.(?:warning|error|exception)\(\s*f?"([^"]+)"', source)
    assert len(logged) > 20
    assert [text for text in logged if fixed_words(text) not in page] == []


def test_the_promises_are_the_same_everywhere():
    (readme,) = re.findall(r"## Promises.*?\n\n(1\. .*?)\n\n", README.read_text(), re.DOTALL)
    assert readme in (DOCS / "promises.md").read_text()


def options_of(parser):
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


def fixed_words(text):
    """The longest part of a log text that is the same every time."""
    return max(re.split(r"%\(\w+\)s|\. |%[a-z.0-9]+|\{[^}]*\}", text), key=len).strip(" .,:;()“”")


def test_every_finding_of_the_diagnosis_is_documented():
    page = (DOCS / "operations.md").read_text()
    names = ("diagnosis", "finding", "queues", "blocked_children")
    said = [text for name in names for text in findings(ROOT / "django_batches" / "monitoring" / f"{name}.py")]
    assert len(said) > 15
    assert [text for text in said if fixed_words(text) not in page] == []


def findings(path):
    """The texts of findings, without their advice."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in ("_", "ngettext"):
            continue
        texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        text = texts[-1] if texts else ""
        if len(re.sub(r"%\(\w+\)s|\W", "", text)) > 10 and not ADVICE.search(text):
            yield text
