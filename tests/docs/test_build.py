"""The pages build without a warning, and their links work."""

import re
import subprocess
import sys

import pytest

from .pages import DOCS, README, ROOT, pages

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)|^:?(?:```|:::)\{image\} (\S+)", re.MULTILINE)
WRITTEN_ELSEWHERE = {"benchmarks.md", "chaos.md", "databases.md"}
"""Pages that may be missing: see docs/conf.py."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    command = ["-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", "-d", folder / "doctrees", DOCS, folder]
    made = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert made.returncode == 0, made.stderr
    return folder


def test_the_pages_build_without_a_warning(built):
    expected = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    assert {path for path in expected if not (built / path).exists()} == set()


def test_the_pages_load_nothing_from_other_servers(built):
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]*rel="stylesheet"[^>]*href="(?:https?:)?//'
    )
    assert [path.name for path in built.rglob("*.html") if loaded.search(path.read_text())] == []


def test_the_reference_contains_the_public_names(built):
    text = (built / "reference" / "api.html").read_text()
    names = ["django_batches.Batch.open", "django_batches.current_job", "django_batches.exponential"]
    names += ["django_batches.Batch.retry_failed", "django_batches.exceptions.BatchFinished"]
    names += ["django_batches.testing.drain", "django_batches.models.BatchJob.cancel"]
    assert [name for name in names if f'id="{name}"' not in text] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_exist(page):
    found = [match[0] or match[2] for match in LINK.findall(page.read_text())]
    gone = [path for path in found if path and not (page.parent / path).exists() and path not in WRITTEN_ELSEWHERE]
    assert [path for path in gone if path.rpartition("/")[2] not in WRITTEN_ELSEWHERE] == []


def test_every_page_is_in_the_table_of_contents(built):
    text = (built / "index.html").read_text()
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")} - {"index.html"}
    assert {path for path in pages if f'href="{path}"' not in text} == set()


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200
