"""The breaks themselves; that each is noticed is shown by `make mutants`."""

import pytest

from tests.processes import ROOT

from .mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_break_finds_the_text_that_it_breaks(mutant):
    assert (ROOT / "django_batches" / mutant.file).read_text().count(mutant.before) == 1
