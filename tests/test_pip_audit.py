"""`make audit`: what it makes of pip-audit's report."""

import importlib.util

import pytest

from .processes import ROOT

spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

GOOD = {"name": "rq", "version": "3.0.0", "vulns": []}
BAD = {"name": "django", "version": "5.2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["5.2.1"], "aliases": []}]}
UNKNOWN = {"name": "django-batches", "skip_reason": "not found on PyPI"}


def test_a_vulnerable_package_fails_with_the_version_that_mends_it():
    assert audit.judge([GOOD, BAD]) == (1, ["VULNERABLE: django 5.2.0: CVE-1, fixed in 5.2.1"])


def test_the_installer_is_not_judged():
    assert audit.judge([GOOD, {**BAD, "name": "pip"}])[0] == 0


def test_what_was_passed_over_is_said():
    said = "1 packages audited, no known vulnerability; not on PyPI: django-batches"
    assert audit.judge([GOOD, UNKNOWN]) == (0, [said])


@pytest.mark.parametrize(("environment", "code"), [("", 0), ("required", 1)])
def test_where_nothing_was_audited_it_says_so_and_fails_on_request(monkeypatch, environment, code):
    monkeypatch.setenv("AUDIT", environment)
    found, (line,) = audit.judge([UNKNOWN, UNKNOWN])
    assert found == code and line.startswith("NOT AUDITED: ") and "make audit" in line
