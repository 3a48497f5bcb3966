"""The architecture page names wings, modules and names that exist, in the order that the layers have."""

import re

import pytest

from tests.test_layers import WINGS

from .pages import DOCS, ROOT, table

PAGE = DOCS / "architecture.md"
PACKAGE = ROOT / "django_batches"
PATHS = sorted(set(re.findall(r"`((?:django_batches/)?(?:\w+/)+(?:\w+\.py)?|tests/[\w/.]+)`", PAGE.read_text())))
ANSWERS = {
    "calls/options.py": ("class Options", "_CHECKS"),
    "models/adding.py": ("def using",),
    "models/verbs.py": ("def open",),
    "database/inserting.py": ("class NewJob",),
    "transitions/claiming.py": ("class Claimed",),
    "models/throughput_and_eta.py": ("def eta",),
    "models/batch.py": ("def eta",),
    "transitions/batch_status.py": ("def _end",),
    "admin/changelist.py": ("class ListMixin", "list_display"),
    "transport/vanished.py": ("class VanishReason",),
    "database/base.py": ("class Dialect",),
}
"""What the answers to the six questions say is in these modules."""


@pytest.mark.parametrize("path", PATHS)
def test_each_named_path_exists(path):
    assert any((root / path).exists() for root in (PACKAGE, ROOT)), path


def test_many_paths_are_named():
    assert len(PATHS) > 30


def test_the_table_lists_every_wing_from_top_to_bottom():
    wings = [row[0].strip("`/") for row in table(PAGE, "## The wings")]
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"migrations"}
    assert set(wings) == folders and len(wings) == len(folders)
    layers = [index for wing in wings for index, names in enumerate(WINGS) if wing in names]
    assert layers == sorted(layers, reverse=True)


@pytest.mark.parametrize("path", ANSWERS)
def test_the_answers_name_what_is_there(path):
    assert f"`{path}`" in PAGE.read_text()
    assert [name for name in ANSWERS[path] if name not in (PACKAGE / path).read_text()] == []
