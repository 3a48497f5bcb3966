"""The README, followed in a new project: its settings, its first batch, its worker, its shell."""

import re
from urllib.parse import urlsplit

import pytest
from django.conf import settings

from .pages import README, blocks
from .terminal import Reader


@pytest.fixture
def reader(redis, tmp_path):
    url = urlsplit(settings.CACHES["batches"]["LOCATION"])._replace(path="/13").geturl()
    reader = Reader(tmp_path, url, settings="mysite/settings.py")
    yield reader
    reader.close()


def test_following_the_readme_gives_the_documented_results(reader):
    reader.run("django-admin startproject mysite .")
    reader.run("python manage.py startapp shop")
    first, *typed = blocks(README, "console", "python", "pycon")
    assert "mark_visible" in first.text  # the introduction, before anything is installed
    (options,) = re.findall(r'`"OPTIONS": (\{.*?\})` in `DATABASES`', README.read_text())
    with (reader.folder / "mysite" / "settings.py").open("a") as file:
        file.write(f'\nINSTALLED_APPS += ["shop"]\nDATABASES["default"]["OPTIONS"] = {options}\n')
    for block in typed:
        reader.follow(block)
    assert "Images of A chair" in reader.run("python manage.py batches list")
