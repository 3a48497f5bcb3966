"""The tutorial, followed from an empty folder to its end, with real commands, Redis, a worker and the admin."""

import re
from urllib.parse import urlsplit
from urllib.request import HTTPCookieProcessor, build_opener

import pytest
from django.conf import settings

from tests.processes import wait_until

from .pages import DOCS, blocks
from .terminal import Reader

TUTORIAL = DOCS / "tutorial.md"


@pytest.fixture
def reader(redis, tmp_path):
    url = urlsplit(settings.CACHES["batches"]["LOCATION"])._replace(path="/14").geturl()
    reader = Reader(tmp_path, url)
    yield reader
    reader.close()


def test_following_the_tutorial_gives_the_documented_results(reader):
    for block in blocks(TUTORIAL, "console", "python", "pycon"):
        if "make_year(2026" in block.text:  # the page says to restart them
            reader.stop("batchworker")
            reader.stop("shell")
            reader.run("python manage.py batchworker --workers 2")
        reader.follow(block)
    page = Admin(reader.port).get("/admin/django_batches/batch/")
    assert "Invoices of May" in page and "Invoices of June" in page and "Invoices of 2026" in page


class Admin:
    """A minimal browser: logs in, reads pages."""

    def __init__(self, port):
        self._at = f"http://127.0.0.1:{port}"
        self._open = build_opener(HTTPCookieProcessor()).open
        form = wait_until(lambda: self._try("/admin/login/"))
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)[1]
        self.get("/admin/login/", f"csrfmiddlewaretoken={token}&username=admin&password=admin&next=/admin/".encode())

    def get(self, path, data=None):
        with self._open(f"{self._at}{path}", data, timeout=20) as response:
            return response.read().decode()

    def _try(self, path):
        try:
            return self.get(path)
        except OSError:
            return ""
