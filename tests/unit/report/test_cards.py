"""What a notebook shows of a report, a reduction and a plan."""

from __future__ import annotations

import html
import pickle
import re
from pathlib import Path

from runs import ledger_of, report_of

import at_once_dask
from at_once_dask.protocol.failure import Failure
from at_once_dask.report.ledger import Failed, Ledger


def text(display: str) -> str:
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", display)).split())


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


def test_values_are_bounded() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ValueError

    reduction = at_once_dask.Reduction({"x" * 10**6: list(range(10**6)), 1: Broken()})
    assert len(reduction._repr_html_()) < 2_000
    assert "object whose repr raised ValueError" in text(reduction._repr_html_())


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
