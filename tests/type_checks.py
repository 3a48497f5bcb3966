"""What mypy says about code of a user, against what the lines of the code expect."""

import re
import subprocess
import sys
import tempfile
from functools import cache

from .processes import ROOT


@cache
def cache_folder():
    """One for all tests of this process: a cold run of mypy reads all of Django."""
    return tempfile.TemporaryDirectory(prefix="batches-mypy-")


def assert_only_marked_lines_are_errors(path, code, config=ROOT / "pyproject.toml"):
    """Each line that ends in `# error`, and no other, is one for strict mypy."""
    path.write_text(code)
    options = ["--config-file", config, "--cache-dir", cache_folder().name]
    command = [sys.executable, "-m", "mypy", "--strict", *options, path]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = {int(line) for line in re.findall(rf"{path.name}:(\d+): error", made.stdout)}
    expected = {number for number, line in enumerate(code.splitlines(), 1) if line.endswith("# error")}
    assert expected, "no line expects an error"
    assert found == expected, made.stdout + made.stderr
