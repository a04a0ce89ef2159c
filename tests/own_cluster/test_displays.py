"""What notebooks show of a Report, a Reduction and a Plan: little, first things first, escaped."""

from __future__ import annotations

import html
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from chromium import chromium, complaints
from distributed import Client
from runs import ledger_of, report_of

import at_once_dask
from at_once_dask.protocol.failure import Failure
from at_once_dask.report.ledger import Failed, Ledger

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


def test_a_report_of_many_causes_is_small() -> None:
    def failure(n: int) -> Failure:
        return Failure(n, "process", "exception", "E", "x" * 2_000, "t" * 20_000, f"file {n}")

    display = report_of(ledger_of(50, failure=failure))._repr_html_()

    assert display.count("<li>") == 6
    assert "and 45 more: see report.causes" in text(display)
    assert len(display) < 5_000


def test_a_report_has_no_links_that_would_be_dead_soon() -> None:
    """It is kept: saved, exported, mailed. The addresses are those of this process."""
    links = {"page_link": "http://127.0.0.1:8787/at-once", "dashboard_link": "http://127.0.0.1:1/s"}
    report = report_of(ledger_of(1), **links)
    assert "href" not in report._repr_html_()
    assert report.dashboard_link == links["dashboard_link"]


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


def test_values_are_bounded() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ValueError

    reduction = at_once_dask.Reduction({"x" * 10**6: list(range(10**6)), 1: Broken()})
    assert len(reduction._repr_html_()) < 2_000
    assert "object whose repr raised ValueError" in text(reduction._repr_html_())


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


def test_a_plan_shows_failures_in_the_order_of_its_frame() -> None:
    failed = [Failed(Failure(n, "check", "exception", "E", "no"), n, n) for n in (7, 3, 5)]
    plan: at_once_dask.Plan[int] = at_once_dask.Plan(9, 6, [], tuple(failed))
    shown = re.findall(r"input (\d)", text(plan._repr_html_()))
    assert shown == [str(n) for n in plan.failures["input"]] == ["3", "5", "7"]


def test_inputs_are_called_as_they_were_when_they_failed(folder: Path) -> None:
    ledger, inp = Ledger(), ["as it was"]
    ledger.draw(1)
    ledger.refuse(Failure(0, "send", "exception", "E", "no"), inp)
    report = report_of(ledger)
    inp[0] = "changed"

    report.to_html("report.html")

    page = (folder / "report.html").read_text("utf-8")
    for shown in (str(report), report._repr_html_(), page, str(pickle.loads(pickle.dumps(report)))):
        assert "as it was" in shown
        assert "changed" not in shown


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
