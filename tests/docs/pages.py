"""The pages of the documentation, and their code blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages():
    """Returns the hand-written pages: those of the documentation and those at the top of the repository."""
    by_commands = {DOCS / "benchmarks.md", DOCS / "chaos.md"}
    return sorted({*DOCS.rglob("*.md"), *ROOT.glob("*.md")} - by_commands)


def blocks(page, *languages):
    """Returns the fenced blocks of a page in order, or only those in these languages."""
    tokens = MarkdownIt().enable("table").parse(page.read_text())
    found = [
        Block(page, token.map[0] + 1, token.info.split()[0] if token.info else "", token.content)
        for token in tokens
        if token.type == "fence"
    ]
    return [block for block in found if not languages or block.language in languages]


def table(page, heading):
    """Returns the rows of the first table below a heading, each as a list of cells."""
    text = page.read_text().split(f"{heading}\n", 1)[1]
    lines = re.search(r"^\|.*?(?=^[^|])", f"{text}\n\n.", re.MULTILINE | re.DOTALL)[0].strip().splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines[2:]]
