"""The system's Chromium, driven by Playwright."""

import os
import shutil
from contextlib import contextmanager

# Playwright's sync API runs an event loop in this thread, in which Django would refuse database access.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def program():
    """The path of Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser():
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 (only needed here)

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program(), args=FLAGS)
        try:
            yield launched
        finally:
            launched.close()
