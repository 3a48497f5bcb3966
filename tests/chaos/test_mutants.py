"""Each mutation applies to the current source; `make mutants` shows that the chaos tests detect it."""

import pytest

from tests.processes import ROOT

from .mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutation_finds_its_text_exactly_once(mutant):
    assert (ROOT / "django_batches" / mutant.file).read_text().count(mutant.before) == 1
