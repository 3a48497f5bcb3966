"""A live server with a strict Content-Security-Policy, a real batchworker, and Chromium."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from playwright.sync_api import expect

from example_project.processes import running

from .chromium import browser, program

MANAGE = Path(__file__).parents[2] / "manage.py"
PATIENCE = 60_000
"""In milliseconds, for a busy machine."""


@pytest.fixture(scope="module")
def chromium():
    # Not for the session: Playwright's event loop would stay in this thread and affect all later tests.
    if program() is None:
        missing = "There is no Chromium: apt-get install -y --no-install-recommends chromium"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    expect.set_options(timeout=PATIENCE)
    with browser() as launched:
        yield launched


@pytest.fixture
def site(live_server, settings):
    """The server. Every response carries the strict policy, and the status view allows users to see their batches."""
    settings.ROOT_URLCONF = "tests.browser.urls"
    settings.MIDDLEWARE = ["tests.browser.csp.strict_policy", *django_settings.MIDDLEWARE]
    settings.DJANGO_BATCHES = {**settings.DJANGO_BATCHES, "STATUS_PERMISSION": "tests.browser.urls.may_see"}
    return live_server


@pytest.fixture
def root(site):
    return get_user_model().objects.create_superuser("root", password="root")


@pytest.fixture
def browse(chromium, site):
    """Opens pages for users. Fails if the console shows an error, such as a violation of the policy."""
    contexts, errors = [], []

    def open_page(user, **options):
        context = chromium.new_context(base_url=site.url, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        client = Client()
        client.force_login(user)
        context.add_cookies([{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": site.url}])
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def is_error(message):
    expected = "status of 403" in message.text or message.location["url"].endswith("favicon.ico")
    return (message.type == "error" and not expected) or "Content Security Policy" in message.text


@pytest.fixture
def batchworker(transactional_db, redis, tmp_path):
    """A context manager that runs a real batchworker on the test database."""

    @contextmanager
    def start(workers=2):
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.browser.worker_settings",
            "TEST_DATABASE": str(connection.settings_dict["NAME"]),
        }
        command = [sys.executable, MANAGE, "batchworker", "--workers", workers]
        with (
            (tmp_path / "batchworker.log").open("wb") as log,
            running(command, env=environment, stdout=log, stderr=log),
        ):
            yield

    return start
