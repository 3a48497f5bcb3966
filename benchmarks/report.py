"""Writes docs/benchmarks.md: one section per benchmark, replaced by each run."""

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

The command in each section writes that section, on the machine described there. Run it on your own machine. You can
compare the figures of one table, which come from one run, but not the figures of different tables.
"""


def write(title: str, command: str, environment: Sequence[str], text: str) -> None:
    """Print a section and write it to the page, replacing the section with the same title."""
    facts = "\n".join(f"* {line}" for line in environment)
    section = f"## {title}\n\n    {command}\n\n{date.today()}:\n\n{facts}\n\n{text.strip()}\n"
    print(section)
    page = PAGE.read_text() if PAGE.exists() else HEAD
    sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    titles = [part.splitlines()[0] for part in sections]
    if f"## {title}" in titles:
        sections[titles.index(f"## {title}")] = section
    else:
        sections.append(section)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(part.rstrip() + "\n" for part in sections))


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table: the first column left-aligned, the others right-aligned."""
    cells = [list(head), *[[str(cell) for cell in line] for line in lines]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def shown(line: Sequence[str]) -> str:
        first, *rest = zip(line, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"

    return "\n".join(map(shown, [cells[0], rule, *cells[1:]]))
