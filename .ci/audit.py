"""Known vulnerabilities in what is installed: `make audit`.

pip-audit asks the JSON interface of PyPI, or of the index it is told to use. Where that is out of reach, as behind a
mirror that has the files alone, nothing was audited: this says so, and fails only with AUDIT=required.
"""

import json
import os
import subprocess
import sys
from typing import Any

COMMAND = [sys.executable, "-m", "pip_audit", "--format", "json", "--skip-editable", "--progress-spinner", "off"]
NOT_OURS = {"pip"}
"""The installer that came with Python: nothing depends on it."""


def judge(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit code and what to print about the dependencies as pip-audit reports them."""
    ours = [each for each in dependencies if each["name"] not in NOT_OURS]
    audited = [each for each in ours if "vulns" in each]
    lines = []
    for each in audited:
        for found in each["vulns"]:
            fix = " or ".join(found["fix_versions"]) or "no version yet"
            lines.append(f"VULNERABLE: {each['name']} {each['version']}: {found['id']}, fixed in {fix}")
    if lines:
        return 1, lines
    if not audited:
        return unaudited("the index knows no advisories of any package (a mirror without PyPI's JSON interface)")
    passed_over = sorted(each["name"] for each in ours if "vulns" not in each)
    rest = f"; not on PyPI: {', '.join(passed_over)}" if passed_over else ""
    return 0, [f"{len(audited)} packages audited, no known vulnerability{rest}"]


def unaudited(why: str) -> tuple[int, list[str]]:
    must = os.environ.get("AUDIT") == "required"
    return int(must), [f"NOT AUDITED: {why}. Run `make audit` where https://pypi.org/pypi is in reach."]


def main() -> int:
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    try:
        code, lines = judge(json.loads(done.stdout)["dependencies"])
    except ValueError:
        code, lines = unaudited((done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1])
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
