"""A browser without a network."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the tests of one file: Playwright's event loop must not run beside tests of other files."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; Debian's package `chromium` brings one")
    quiet = ("first-run", "default-browser-check")
    disabled = ("gpu", "background-networking", "component-update", "sync", "extensions")
    flags = ["--no-sandbox", *(f"--no-{name}" for name in quiet), *(f"--disable-{name}" for name in disabled)]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield running
        running.close()
