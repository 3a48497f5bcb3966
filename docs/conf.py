"""Sphinx configuration: `make docs` builds the pages in build/docs, without network access."""

import sys
from pathlib import Path

import django
from django.conf import settings

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_batches"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    USE_TZ=True,
)
django.setup()

project = "django_batches"
copyright = "the django_batches maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["images"]
html_theme = "furo"
html_title = "django_batches"
pygments_dark_style = "github-dark"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d6f54", "color-brand-content": "#1d6f54"},
    "dark_css_variables": {"color-brand-primary": "#6fcaa8", "color-brand-content": "#6fcaa8"},
}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

default_role = "code"  # for single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they would make the signatures too long
nitpick_ignore_regex = [("py:.*", r"(django|rq|redis|collections|datetime|typing)\..*")]

# Written by `make bench` and `make chaos`; a link to a page that does not exist yet is not an error.
WRITTEN_ELSEWHERE = ["benchmarks.md", "chaos.md", "databases.md"]
if not all((HERE / page).exists() for page in WRITTEN_ELSEWHERE):
    suppress_warnings = ["myst.xref_missing"]  # tests/docs checks all other links
