"""The pictures in README and manual, of a real run in a real browser: ``make screenshots``.

The run is that of `survey.py`, in a new folder whose path is taken out of what is shown.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
WIDTH, SCALE = 900, 1.5  # of a page, in pixels of CSS; a picture has so many times more
WIDTH_OF_DASHBOARD = 1200  # for its tabs in one row
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
        run = subprocess.Popen(
            [sys.executable, script], cwd=folder, stderr=subprocess.PIPE, text=True
        )
        with run:
            try:
                picture_of_page(chrome, page_of(run))
                run.communicate()
            finally:
                run.kill()
        assert run.returncode == 0
        picture_of_report(chrome, folder)


def page_of(run: subprocess.Popen[str]) -> str:
    """The address of the page "At once", as it is printed at the start of a run."""
    assert run.stderr is not None
    for line in run.stderr:
        if found := re.search(r"http://\S+/at-once\b", line):
            return found[0]
    raise RuntimeError("the run ended before it told where its page is")


def picture_of_page(chrome: Any, page: str) -> None:
    """When most is done, and a worker has been at one input for long."""
    show(chrome, page, WIDTH_OF_DASHBOARD)
    end = time.monotonic() + 120
    while not is_telling(page):
        assert time.monotonic() < end, "no moment has come that would make a good picture"
        time.sleep(0.3)
    time.sleep(1.5)  # the page asks once a second
    save(chrome, "page", "body", "#failing")


def is_telling(page: str) -> bool:
    with urllib.request.urlopen(f"{page}.json") as answer:
        run = json.load(answer)["run"]
    if run is None or run["n_causes"] < 3 or run["inputs"]["processed"] < 300:
        return False
    long = [worker for worker in run["workers"] if worker["long"]]
    return len(long) == 1 and long[0]["seconds"] > 1


def picture_of_report(chrome: Any, folder: Path) -> None:
    page = folder / "report.html"
    text = page.read_text("utf-8")
    page.write_text(text.replace(f"{folder.resolve()}/", ""), "utf-8")
    show(chrome, page.as_uri())
    save(chrome, "report", "header", "#workers")
    crash = chrome.find_element("xpath", "//h3[contains(., 'SIGSEGV')]/following::details[1]")
    title = crash.find_element("xpath", "preceding-sibling::h3[1]")
    chrome.execute_script("arguments[0].open = true; arguments[0].id = 'crash'", crash)
    save(chrome, "failure", f"#{title.get_attribute('id')}", "#crash")


def show(chrome: Any, address: str, width: int = WIDTH) -> None:
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": SCALE, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chrome.get(address)


def save(chrome: Any, name: str, first: str, last: str) -> None:
    """A picture of the page, from where the element `first` begins to where `last` ends."""
    width = chrome.execute_script("return innerWidth")
    box = "return document.querySelector(arguments[0]).getBoundingClientRect()"
    top = chrome.execute_script(f"{box}.top + scrollY", first)
    bottom = chrome.execute_script(f"{box}.bottom + scrollY", last)
    top = max(0, top - MARGIN)
    clip = {"x": 0, "y": top, "width": width, "height": bottom - top + MARGIN / 4}
    taken = chrome.execute_cdp_cmd(
        "Page.captureScreenshot", {"clip": clip | {"scale": 1}, "captureBeyondViewport": True}
    )
    path = PICTURES / f"{name}.png"
    with Image.open(BytesIO(b64decode(taken["data"]))) as picture:
        picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    size = path.stat().st_size
    assert size < MOST_BYTES, f"{path.name} has {size:,} bytes, too many for a README"


if __name__ == "__main__":
    main()
