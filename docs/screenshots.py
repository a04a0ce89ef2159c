"""The pictures in the README, of a real run in a real browser: ``make screenshots``.

The run is that of `survey.py`, in a new folder whose path is taken out of what is shown.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
WIDTH, SCALE = 900, 1.5  # of a page, in pixels of CSS; the picture has so many times more
MARGIN = 16
COLOURS = 64
MOST_BYTES = 150_000

sys.path.insert(0, str(HERE.parent / "tests"))

import browser  # noqa: E402


def main() -> None:
    if not browser.is_there():
        sys.exit(browser.MISSING)
    PICTURES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as parent,
        browser.started(Path(parent, "profile"), "--hide-scrollbars") as chrome,
    ):
        folder = Path(parent, "folder")
        folder.mkdir()
        script = shutil.copy(HERE / "survey.py", folder)
        subprocess.run([sys.executable, script], cwd=folder, check=True)
        picture_of_report(chrome, folder)


def picture_of_report(chrome: Any, folder: Path) -> None:
    page = folder / "report.html"
    text = page.read_text("utf-8")
    page.write_text(text.replace(f"{folder.resolve()}/", ""), "utf-8")
    show(chrome, page.as_uri())
    save(chrome, "report", "header", "#durations")
    crash = chrome.find_element("xpath", "//details[contains(., 'SIGSEGV')]")
    chrome.execute_script("arguments[0].open = true; arguments[0].id = 'crash'", crash)
    save(chrome, "failure", "#crash", "#crash")


def show(chrome: Any, address: str) -> None:
    metrics = {"width": WIDTH, "height": 1000, "deviceScaleFactor": SCALE, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chrome.get(address)


def save(chrome: Any, name: str, first: str, last: str) -> None:
    """A picture of the page, from where the element `first` begins to where `last` ends."""
    top, bottom = chrome.execute_script(
        "return [document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY,"
        " document.querySelector(arguments[1]).getBoundingClientRect().bottom + scrollY]",
        first,
        last,
    )
    clip = {"x": 0, "y": top - MARGIN, "width": WIDTH, "height": bottom - top + 2 * MARGIN}
    taken = chrome.execute_cdp_cmd(
        "Page.captureScreenshot",
        {"clip": clip | {"scale": 1}, "captureBeyondViewport": True},
    )
    path = PICTURES / f"{name}.png"
    with Image.open(BytesIO(b64decode(taken["data"]))) as picture:
        picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    size = path.stat().st_size
    assert size < MOST_BYTES, f"{path.name} has {size:,} bytes, too many for a README"


if __name__ == "__main__":
    main()
