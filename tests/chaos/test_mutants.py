"""The texts of the package that the chaos tests quote; `make mutants` shows that they detect each mutation."""

import pytest

from tests.processes import ROOT

from .harness import ERRORS
from .mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutation_finds_its_text_exactly_once(mutant):
    assert (ROOT / "django_batches" / mutant.file).read_text().count(mutant.before) == 1


@pytest.mark.parametrize("text", ERRORS)
def test_the_package_logs_each_error_that_fails_a_round(text):
    source = "".join(path.read_text() for path in (ROOT / "django_batches").rglob("*.py"))
    assert text in source
