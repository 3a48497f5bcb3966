"""The tables of the reference are complete: a setting, check, option or exception without documentation fails here."""

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


def test_every_setting_is_documented_with_its_default():
    rows = {unquoted(row[0]): row[1] for row in table(DOCS / "reference" / "settings.md", "# Settings")}
    known = {field.name: field for field in fields(conf.Settings) if field.name != "unknown"}
    assert rows.keys() == known.keys()
    plain = {name: field.default for name, field in known.items() if isinstance(field.default, str | int)}
    documented = {name: rows[name].strip("`").replace('"', "'") for name in plain if name != "NAMESPACE"}
    assert documented == {name: repr(value) for name, value in plain.items() if name != "NAMESPACE"}
    assert tuple(re.findall(r'`"(\w+)"`', rows["SENSITIVE_KWARGS"])) == conf.SENSITIVE
    days = {age.days for age in conf.RETENTION.values()}
    assert days == {int(number) for number in re.findall(r"\d+", rows["RETENTION"])}


def test_every_check_is_documented_and_has_its_own_id():
    source = "\n".join(path.read_text() for path in (ROOT / "django_batches").rglob("*.py"))
    raised = re.findall(r'(?:id=|, )"(django_batches\.[EW]\d+)"', source)
    rows = [unquoted(row[0]) for row in table(DOCS / "reference" / "checks.md", "# System checks")]
    assert rows == sorted(set(raised))


def test_every_option_of_the_worker_is_documented():
    parser = load_command_class("django_batches", "batchworker").create_parser("manage.py", "batchworker")
    documented = {re.match(r"`(--[\w-]+)", row[0])[1] for row in table(COMMANDS, "## batchworker")}
    assert documented == options_of(parser) - COMMON


@pytest.mark.parametrize("name", VERBS)
def test_every_option_of_a_verb_is_documented(name):
    rows = {unquoted(row[0]): row for row in table(COMMANDS, "## batches")}
    assert rows.keys() == VERBS.keys()
    parser = load_command_class("django_batches", "batches").create_parser("manage.py", "batches")
    (verbs,) = [action for action in parser._actions if action.dest == "verb"]
    documented = set(re.findall(r"`(--[\w-]+)", " ".join(rows[name][1:])))
    assert documented == options_of(verbs.choices[name]) - COMMON


def test_every_health_check_is_documented():
    rows = table(DOCS / "guides" / "monitoring.md", "## Health")
    assert [unquoted(row[0]) for row in rows] == list(Health.NAMES)


def test_every_metric_is_documented():
    source = (ROOT / "django_batches" / "monitoring" / "metrics.py").read_text()
    names = set(re.findall(r'"(django_batches_\w+)"', source))
    rows = table(DOCS / "guides" / "monitoring.md", "## Prometheus")
    documented = {unquoted(row[0]).partition("{")[0].removesuffix("_total") for row in rows}
    assert documented == names


def test_every_permission_is_documented():
    own = {f"django_batches.{name}" for name, _ in Batch._meta.permissions}
    rows = {unquoted(row[0]) for row in table(DOCS / "reference" / "admin.md", "# Admin")}
    assert rows == own | {"django_batches.view_batch", "django_batches.delete_batch"}


def test_every_exception_has_a_docstring_and_a_common_base():
    found = dict(inspect.getmembers(exceptions, inspect.isclass))
    assert found and all(kind.__doc__ and issubclass(kind, exceptions.BatchError) for kind in found.values())
    assert "automodule:: django_batches.exceptions" in (DOCS / "reference" / "api.md").read_text()


def test_every_log_line_is_documented():
    """The operations page contains the fixed words of each text logged as a warning or worse."""
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
    """Returns the longest fixed part of a log text."""
    return max(re.split(r"%\(\w+\)s|\. |%[a-z.0-9]+|\{[^}]*\}", text), key=len).strip(" .,:;()“”")


def test_every_finding_of_the_diagnosis_is_documented():
    page = (DOCS / "operations.md").read_text()
    names = ("diagnosis", "finding", "queues", "blocked_children")
    texts = [text for name in names for text in findings(ROOT / "django_batches" / "monitoring" / f"{name}.py")]
    assert len(texts) > 15
    assert [text for text in texts if fixed_words(text) not in page] == []


def findings(path):
    """Yields the texts of findings, without their advice."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in ("_", "ngettext"):
            continue
        texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        text = texts[-1] if texts else ""
        if len(re.sub(r"%\(\w+\)s|\W", "", text)) > 10 and not ADVICE.search(text):
            yield text
