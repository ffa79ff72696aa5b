"""Pages in a real browser: Chromium, driven by Playwright, where both are installed."""

import shutil
from contextlib import contextmanager

import pytest

LONGEST = 120_000  # milliseconds, on a busy machine
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def open_browser(*flags):
    """Opens the browser that is installed, or skips the test."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of the browsers {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        # Its sandbox needs rights that containers have not.
        yield started.chromium.launch(
            executable_path=path, args=["--no-sandbox", *flags]
        )


def block(tab, label):
    of_label = tab.get_by_text(label, exact=True)
    return tab.locator(".block").filter(has=of_label).last


def give(tab, label, path):
    """Uploads a file, in place of the one before."""
    place = block(tab, label)
    if place.get_by_label("Clear").count():
        place.get_by_label("Clear").click()
    place.locator("input[type=file]").set_input_files(path)
    place.get_by_label("Download").wait_for()
