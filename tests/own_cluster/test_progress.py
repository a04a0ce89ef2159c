"""What is seen of a run while it goes on: on a terminal, in a notebook, and in a pipe."""

from __future__ import annotations

import io
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from distributed import Client
from nbclient import NotebookClient
from terminal import ROOT, Terminal, in_a_terminal, screen

import at_once_dask
from at_once_dask.live import console


@pytest.fixture(autouse=True)
def _no_links_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_links_told", set())


class Watched(Terminal):
    """Lets the slow input go on once its name was shown."""

    def __init__(self, go_on: Path) -> None:
        super().__init__(120)
        self._go_on = go_on

    def write(self, text: str) -> int:
        if "slowest: 'the slow one' in process for " in text:
            self._go_on.touch()
        return super().write(text)


def test_a_slow_input_is_named_while_others_are_done(
    cluster: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(inp: str) -> None:
        end = threading.Event()
        for _ in range(300):  # 30 s, if its name is never shown
            if inp != "the slow one" or (folder / "go on").exists():
                break
            end.wait(0.1)

    with Watched(folder / "go on") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        report = at_once_dask.run(["the slow one", *"abcdefghij"], None, work)
        frames = stream.frames
    assert (folder / "go on").exists()
    assert 2 < report.items["seconds"].max() < 10
    (named, *_) = [frame for frame in frames if "slowest" in frame]
    assert named.startswith("map: 10 processed, 0 skipped, 0 failed, 1 left, ETA ")
    assert "slowest" not in frames[-1]
    assert sum(frame.startswith("Dask dashboard: ") for frame in frames) == 1


SECONDS = r"in \d+\.\d s(, [\d,.]+/\w+)?"


def test_what_a_run_shows(cluster: Client, capfd: pytest.CaptureFixture[str]) -> None:
    at_once_dask.run(range(10), lambda n: [n < 3, {n: n}], lambda n: {n: n}, reduce_fn=sum)
    out, err = capfd.readouterr()
    assert out == ""
    link, page, mapped, reduced = err.splitlines()
    assert re.fullmatch(r"Dask dashboard: http://127\.0\.0\.1:\d+/status", link)
    assert re.fullmatch(r"This run: http://127\.0\.0\.1:\d+/at-once", page)
    assert re.fullmatch(f"map: 7 processed, 3 skipped, 0 failed, 0 left, {SECONDS}", mapped)
    assert re.fullmatch(f"reduce: 10 processed, 0 skipped, 0 failed, 0 left, {SECONDS}", reduced)


def test_what_a_plan_shows(cluster: Client, capfd: pytest.CaptureFixture[str]) -> None:
    at_once_dask.plan(range(10), lambda n: [n < 3, None])
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(
        "Dask dashboard: .*\nThis run: .*\n"
        f"check: 7 pending, 3 skipped, 0 failed, 0 left, {SECONDS}\n",
        err,
    )


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_silence(
    cluster: Client,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    stream: Callable[[], io.StringIO],
) -> None:
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    with pytest.raises(at_once_dask.RunFailed):
        at_once_dask.run([1, 0], None, lambda n: {n: 1 / n}, reduce_fn=sum, progress=False)
    at_once_dask.plan([1, 0], lambda n: [1 / n, None], progress=False)
    assert shown.getvalue() == ""
    assert capfd.readouterr() == ("", "")


CELL = """
import warnings
warnings.simplefilter("error")
import at_once_dask
client = at_once_dask.start(2, dashboard_address="127.0.0.1:0")
result = at_once_dask.run(range(100), lambda n: [n < 30, {}], lambda n: {n: n}, reduce_fn=sum)
at_once_dask.close()
"""


def executed(folder: Path, monkeypatch: pytest.MonkeyPatch, *cells: str) -> list[list[Any]]:
    """The outputs of each cell, as they are stored."""
    monkeypatch.setenv("PYTHONPATH", ROOT)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True)
    client.execute(cwd=str(folder))
    assert "widgets" not in notebook.metadata
    return [cell.outputs for cell in notebook.cells]


@pytest.mark.thorough
def test_what_a_kernel_stores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((mapped, reduced),) = executed(folder, monkeypatch, CELL)
    ends = r", in \d+\.\d s(, [\d,.]+/\w+)?"
    counts = "map: 70 processed, 30 skipped, 0 failed, 0 left"
    assert re.fullmatch(counts + ends, mapped.data["text/plain"])
    counts = "reduce: 70 processed, 0 skipped, 0 failed, 0 left"
    assert re.fullmatch(counts + ends, reduced.data["text/plain"])
    for output in mapped, reduced:
        assert output.output_type == "display_data"
        assert set(output.data) == {"text/plain", "text/html"}
        assert output.data["text/html"].startswith("<progress value=")
        assert "http" not in output.data["text/html"]


SCRIPT = """
import at_once_dask, threading

def work(n):
    threading.Event().wait(0.01)

at_once_dask.start(2, dashboard_address="127.0.0.1:0")
at_once_dask.run(range(100), lambda n: [n < 30, None], work)
at_once_dask.run((n for n in range(10)), None, work)
"""


@pytest.mark.thorough
def test_a_script_in_a_terminal(folder: Path) -> None:
    out, shown = in_a_terminal([sys.executable, "-c", SCRIPT], columns=80)
    assert out == ""
    assert "\x1b" not in shown  # nothing but text, and returns to the start of the line
    lines = screen(shown, 80)
    assert len(lines) == 4  # the links are those of the cluster: they are told once
    assert re.fullmatch(r"Dask dashboard: http://127\.0\.0\.1:\d+/status", lines[0])
    assert re.fullmatch(r"This run: http://127\.0\.0\.1:\d+/at-once", lines[1])
    assert re.fullmatch(
        rf"map: 70 processed, 30 skipped, 0 failed, 0 left, {SECONDS} 100%\|█+\|", lines[2]
    )
    assert re.fullmatch(f"map: 10 processed, 0 skipped, 0 failed, {SECONDS}", lines[3])
    assert shown.endswith("\r\n")
