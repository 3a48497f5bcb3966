"""The hooks of a commit are what `make lint` runs, so that neither is green where the other is red."""

import re

from .processes import ROOT


def recipe(target):
    """The commands of a target of the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in found[1].splitlines()]


def test_the_hooks_are_what_make_lint_runs():
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = re.findall(r"^ +entry: (.*)$", config, re.MULTILINE)
    assert hooks == recipe("lint") + recipe("audit")
