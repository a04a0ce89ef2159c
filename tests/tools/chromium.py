"""A real browser, for tests and for pictures: Chromium, headless, driven by its own driver."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MISSING = (
    "no browser: install Debian's packages chromium and chromium-driver"
    " (apt-get install chromium chromium-driver)"
)
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
)


@contextmanager
def chromium(profile: Path, *more: str) -> Iterator[Any]:
    """A selenium driver; the test is skipped where there is no browser, unless one is required.

    Parameters
    ----------
    profile : path
        An empty folder.
    more : str
        Further arguments of Chromium.
    """
    if not is_there():
        if os.environ.get("AT_ONCE_BROWSER") == "required":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with started(profile, *more) as chrome:
        yield chrome


def is_there() -> bool:
    return None not in (shutil.which("chromedriver"), shutil.which("chromium"))


@contextmanager
def started(profile: Path, *more: str) -> Iterator[Any]:
    """The same, where there is a browser."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (*_ARGUMENTS, f"--user-data-dir={profile}", *more):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
    try:
        yield chrome
    finally:
        chrome.quit()


def complaints(chrome: Any) -> list[str]:
    """Errors in the browser's console."""
    return [entry["message"] for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"]
