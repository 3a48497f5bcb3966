"""docs/benchmarks.md: one section per benchmark, written anew by each run of it."""

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Every section is written by the command in it, on the machine that it names. Run them on yours: figures of one table
were measured in one run and may be compared, figures of two tables may not.
"""


def write(title: str, command: str, environment: Sequence[str], text: str) -> None:
    """Prints a section and puts it into the page, in place of the one with the same title."""
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
    """In Markdown, the first column to the left, the others to the right."""
    cells = [list(head), *[[str(cell) for cell in line] for line in lines]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def shown(line: Sequence[str]) -> str:
        first, *rest = zip(line, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"

    return "\n".join(map(shown, [cells[0], rule, *cells[1:]]))
