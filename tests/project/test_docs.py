"""The pages of `make docs`: every public name, option and file is on them; nothing is amiss."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium, complaints
from helpers import poll_for

import at_once_dask
from at_once_dask.options import Options

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "at_once_dask"
LONGEST = {"README.md": 1_500, "ARCHITECTURE.md": 1_200}  # words
FIRST_CELL = re.compile(r"^\| `([\w/]+(?:\.py)?)", re.MULTILINE)
DOCUMENTED = re.compile(r"^\.\. auto(?:function|class|exception|data):: (\w+)", re.MULTILINE)


def test_every_public_name_is_in_the_reference() -> None:
    names = DOCUMENTED.findall((ROOT / "docs" / "api.rst").read_text("utf-8"))

    assert sorted(names) == sorted(at_once_dask.__all__)


def test_every_option_is_in_the_manual() -> None:
    names = FIRST_CELL.findall((ROOT / "docs" / "manual" / "arguments.md").read_text("utf-8"))

    assert names == [field.name for field in fields(Options)]


def test_every_file_is_on_the_page_of_the_rooms() -> None:
    named = FIRST_CELL.findall((ROOT / "docs" / "internals" / "rooms.md").read_text("utf-8"))

    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    rooms = {f"{room.name}/__init__.py" for room in PACKAGE.iterdir() if room.is_dir()}
    assert sorted(named) == sorted(files - rooms)


@pytest.mark.parametrize("page", LONGEST)
def test_a_page_to_read_in_one_sitting_stays_one(page: str) -> None:
    assert len((ROOT / page).read_text("utf-8").split()) <= LONGEST[page]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, built without a warning."""
    folder = tmp_path_factory.mktemp("pages")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
    done = subprocess.run(
        [*build, "-d", folder / "doctrees", ".", folder / "html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_the_pages_fetch_nothing(pages: Path) -> None:
    for page in ("index", "README", "docs/api", "docs/manual/arguments", "notebooks/first_steps"):
        assert (pages / f"{page}.html").exists()
    assert elsewhere(pages) == [], "a page would fetch something"


def elsewhere(pages: Path) -> list[str]:
    """What pages would fetch from the network as they are shown."""
    fetched = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*")
    return [found for page in pages.rglob("*.html") for found in fetched.findall(page.read_text())]


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """It reaches no host."""
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile, "--host-resolver-rules=MAP * ~NOTFOUND") as driver:
        yield driver


def test_a_notebook_page_draws_the_timeline(pages: Path, chrome: Any) -> None:
    chrome.get((pages / "notebooks" / "analysis_with_pandas.html").as_uri())
    drawn = "return document.querySelectorAll('.bk-Figure').length"
    poll_for(lambda: chrome.execute_script(drawn) == 1, "nothing is drawn")
    assert complaints(chrome) == []


def test_a_report_is_legible_on_its_page(pages: Path, chrome: Any) -> None:
    chrome.get((pages / "notebooks" / "when_something_breaks.html").as_uri())
    for mode in ("light", "dark"):
        chrome.execute_script(f"document.documentElement.dataset.theme = '{mode}'")
        assert chrome.execute_script(CONTRASTS), "no report is on the page"
        assert min(chrome.execute_script(CONTRASTS)) > 4.5, mode  # what WCAG asks for


CONTRASTS = """
const light = (colour) => {  // relative luminance, as WCAG has it
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
    const own = getComputedStyle(element).backgroundColor;
    const is_clear = own === "transparent" || own.endsWith(", 0)");
    return is_clear && element.parentElement ? ground(element.parentElement) : own;
};
return [...document.querySelectorAll(".at_once_dask :is(b, p, td, th, li, code)")].map((text) => {
    const both = [light(getComputedStyle(text).color), light(ground(text))];
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
});
"""
