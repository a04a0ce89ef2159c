"""The pages of `make docs`: every public name is on them, and nothing in them is amiss."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import at_once_dask

ROOT = Path(__file__).parents[1]
DOCUMENTED = re.compile(r"^\.\. auto(?:function|class|exception|data):: (\w+)", re.MULTILINE)


def test_every_public_name_is_in_the_reference() -> None:
    names = DOCUMENTED.findall((ROOT / "docs" / "api.rst").read_text("utf-8"))

    assert sorted(names) == sorted(at_once_dask.__all__)


def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    pages = tmp_path / "html"
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]

    done = subprocess.run(
        [*build, "-d", tmp_path / "doctrees", ".", pages], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    for page in ("index", "README", "docs/api", "notebooks/first_steps"):
        assert (pages / f"{page}.html").exists()
    assert elsewhere(pages) == [], "a page would fetch something"


def elsewhere(pages: Path) -> list[str]:
    """What pages would fetch from the network as they are shown."""
    fetched = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*")
    return [found for page in pages.rglob("*.html") for found in fetched.findall(page.read_text())]
