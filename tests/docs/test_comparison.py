"""The comparison: each cell about django_batches names tests that prove it, and these tests exist."""

import ast
import re

import pytest

from .pages import DOCS, ROOT

PAGE = (DOCS / "comparison.md").read_text()
NOTES = {
    name: re.findall(r"`([^`]+)`", text)
    for name, text in re.findall(r"^\[\^([\w-]+)\]:(.*(?:\n {4}.*)*)", PAGE, re.MULTILINE)
}
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| |")
]
LACKING = (
    "each single job, first retry", "the graph of all steps as data", "limit per second", "weighted progress",
    "arguments encrypted",
)  # fmt: skip


def named_tests(path):
    """Yields the names of a file's tests; those in classes as `TestClass::test_name`."""
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}::{inner.name}" for inner in node.body if hasattr(inner, "name"))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_cell_about_django_batches_names_tests(row):
    assert len(row) == 9
    feature, ours, *theirs = row
    if feature in LACKING:
        assert ours.startswith("no")
        return
    notes = re.findall(r"\[\^([\w-]+)\]", ours)
    assert notes and all(NOTES.get(note) for note in notes)
    assert all(theirs)


@pytest.mark.parametrize("name", NOTES)
def test_each_named_test_exists(name):
    for test in NOTES[name]:
        path, _, function = test.partition("::")
        assert function in set(named_tests(path)), test


def test_every_note_is_used():
    used = set(re.findall(r"\[\^([\w-]+)\](?!:)", PAGE))
    assert used == set(NOTES)


def test_missing_features_are_listed():
    assert {row[0] for row in ROWS if row[1].startswith("no")} == set(LACKING)
