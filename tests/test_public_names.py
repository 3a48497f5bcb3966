"""The reference lists every public name, and nothing else is public."""

import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest
from django.core.management import get_commands

import django_batches
from django_batches import urls
from django_batches.templatetags import batches as tags

from .docs.pages import DOCS, table

PAGE = DOCS / "reference" / "public.md"
ROOT = Path(django_batches.__file__).parent
INTERNAL = {"django_batches.database", "django_batches.tasks.framework"}
"""Private modules that re-export names for the package itself."""


def names(cell):
    return [name.strip("` ") for name in cell.split(",")]


LISTED = {names(module)[0]: names(cell) for module, cell in table(PAGE, "# Public modules")}
OTHERS = {kind: names(cell) for kind, cell in table(PAGE, "These names are public too:\n")}


@pytest.mark.parametrize("module", LISTED)
def test_the_reference_lists_the_public_names_of_a_module(module):
    if module == "django_batches.tasks" and not (find_spec("django.tasks") or find_spec("django_tasks")):
        pytest.skip("no Tasks framework is installed")
    assert LISTED[module] == importlib.import_module(module).__all__


def test_the_reference_lists_every_module_that_declares_its_public_names():
    declaring = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in ROOT.rglob("*.py")
        if "\n__all__ = " in path.read_text()
    }
    assert declaring - INTERNAL == set(LISTED)


def test_the_reference_lists_the_url_names_template_tags_and_commands():
    assert OTHERS["URL names"] == sorted(f"{urls.app_name}:{each.name}" for each in urls.urlpatterns)
    assert OTHERS["template tags, with `{% load batches %}`"] == sorted(tags.register.tags)
    commands = [name for name, app in get_commands().items() if app == "django_batches"]
    assert OTHERS["[commands](commands.md)"] == sorted(commands)
