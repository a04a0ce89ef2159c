"""What notebooks show of a Report, a Reduction and a Plan: little, first things first, escaped."""

from __future__ import annotations

import html
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium, complaints
from distributed import Client

import at_once_dask

run: Any = at_once_dask.run
HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">'


def text(display: str) -> str:
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", display)).split())


def test_a_report(cluster: Client) -> None:
    report = run(
        [1, 0, 2, 0.0],
        lambda n: [n == 2, None],
        lambda n: 1 / n,
        on_error="return",
        progress=False,
    )
    display = report._repr_html_()
    shown = text(display)
    assert shown.startswith(f"Finished; 2 inputs failed. Run {report.run}, ")
    assert "inputs processed skipped failed left 4 1 1 2 0" in shown
    assert "2 \N{MULTIPLICATION SIGN} ZeroDivisionError in process at" in shown
    assert "inputs 0, 0.0 : division by zero" in shown
    assert "Next: fix the cause and run the same again: the 2 inputs that are done" in shown
    assert report.logfile in shown
    assert "All failures: at_once_dask.last_report().failures" in shown
    assert pickle.loads(pickle.dumps(report))._repr_html_() == display


def test_a_reduction(cluster: Client) -> None:
    sums = run(
        range(1_500), None, lambda n: {f"key {n}": n}, reduce_fn=sum, on_error="return",
        progress=False,
    )  # fmt: skip
    shown = text(sums._repr_html_())
    assert shown.startswith("1,500 keys ; the first 10: key value 'key 0' 0 'key 1' 1 'key 2' 2")
    assert "'key 9' 9 Finished; all is done." in shown
    assert "'key 10'" not in shown
    assert repr(at_once_dask.Reduction(a=1)) == "{'a': 1}"
    assert text(at_once_dask.Reduction(a=1)._repr_html_()) == "1 key key value 'a' 1"


def test_a_plan(cluster: Client) -> None:
    plan = at_once_dask.plan(
        range(50), lambda n: [n < 20 or bool(1 // (n - 30)), None], progress=False
    )
    shown = text(plan._repr_html_())
    assert shown.startswith(
        "Plan: 18 inputs to do, 31 done. Nothing was processed. inputs done pending"
    )
    assert f"... and {plan.n_pending - 10} more: see plan.pending" in shown
    assert "input 30 : ZeroDivisionError: " in shown
    assert repr(replace(plan)).startswith("<Plan: 50 inputs, ")


@pytest.mark.thorough
def test_nothing_of_them_is_executed(cluster: Client, folder: Path) -> None:
    def explode(inp: str) -> None:
        raise ValueError(inp)

    reduction = run([HOSTILE], None, lambda inp: {inp: inp}, reduce_fn="".join, progress=False)
    report = run([HOSTILE], None, explode, on_error="return", progress=False)
    plan = at_once_dask.plan([HOSTILE], None, progress=False)
    failing = at_once_dask.plan([HOSTILE], explode, progress=False)  # type: ignore[arg-type]
    shown = [one._repr_html_() for one in (reduction, report, plan, failing)]
    (folder / "page.html").write_text("<!doctype html><body>" + "<hr>".join(shown))

    with chromium(folder / "profile", "--host-resolver-rules=MAP * ~NOTFOUND") as chrome:
        chrome.get((folder / "page.html").as_uri())
        assert chrome.execute_script("return window.hacked") is None
        assert chrome.execute_script("return document.querySelectorAll('script, img').length") == 0
        assert chrome.execute_script("return document.body.textContent").count(HOSTILE) == 7
        assert complaints(chrome) == []
