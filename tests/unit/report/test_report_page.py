"""The report as a page, of a size that a browser bears."""

from __future__ import annotations

import ctypes
import platform
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from runs import ledger_of, report_of

import at_once_dask
from at_once_dask.logs import log_file
from at_once_dask.protocol.failure import Failure
from at_once_dask.report import failure_sample
from at_once_dask.report.report import Report

run: Any = at_once_dask.run


def fragile(inp: Any) -> None:
    at_once_dask.log(f"looking at {inp}")
    if inp == 30:
        ctypes.string_at(0)
    if inp == 60:
        time.sleep(600)
    if isinstance(inp, str):
        raise ValueError(inp)
    if inp % 50 == 0:
        raise KeyError("long" * 500)


def test_it_is_named_by_its_function_its_program_and_its_machine(folder: Path) -> None:
    at_once_dask.run([], None, fragile, report_path="report.html")
    page = (folder / "report.html").read_text("utf-8")
    (title,) = re.findall("<title>(.*)</title>", page)
    assert re.fullmatch(r"fragile in \w+(\.py)?: Finished; all is done\. \(.+\)", title)
    assert title.endswith(f"({platform.node()})")
    assert f"on {platform.node()}, in <code>{folder}</code>" in page


def of_three_causes(n: int, log: Path) -> Report:
    def failure(position: int) -> Failure:
        cause = position % 3
        error = ("ValueError", "KeyError", "OSError")[cause]
        message = f"{position} is <b>wrong</b>"
        frames = "".join(f"  File '{line}.py', line {line}\n" for line in range(40))
        return Failure(
            position, "process", "exception", error, message, frames + message, f"cause {cause}"
        )

    ledger = ledger_of(n, failure=failure)
    with log.open("w") as file:
        for position in range(0, n, 10):
            record = log_file.entry("INFO", "0123456789ab", position, "", "", f"about {position}")
            file.write(log_file.line(record))
    return report_of(ledger, logfile=str(log), log_part=(0, log.stat().st_size))


def test_huge_tracebacks_have_a_budget(folder: Path) -> None:
    def failure(position: int) -> Failure:
        frames = f"{position} " + "<&>'\"" * 4_000
        where = f"file {position % 500}"
        return Failure(position, "process", "exception", "E", "\ud800é" * 1_000, frames, where)

    report = report_of(ledger_of(5_000, failure=failure))

    report.to_html(folder / "report.html")

    page = (folder / "report.html").read_text("utf-8")
    assert (folder / "report.html").stat().st_size < 5e6
    assert page.count("<h3") == failure_sample.MOST_CAUSES
    assert "400 more causes are not shown here" in page
    assert "\\ud800é" in page


def test_equal_tracebacks_are_shown_once(folder: Path) -> None:
    report = of_three_causes(30, folder / "log.jsonl")

    report.to_html(folder / "report.html")

    page = (folder / "report.html").read_text("utf-8")
    assert page.count("line 39") == 3
    assert page.count("Traceback: the same as of") == 27


def test_many_records_have_a_budget(folder: Path) -> None:
    log = folder / "log.jsonl"
    run = "0123456789ab"
    with log.open("w") as file:
        file.write("torn\n")
        for number in range(30):
            for index in range(2_000):
                record = log_file.entry("INFO", run, index, "", "", f"{number} " + "x" * 2_000)
                file.write(log_file.line(record))
    ledger = ledger_of(2_000, failure=lambda n: Failure(n, "process", "exception", "E", "no"))
    report = report_of(ledger, logfile=str(log), log_part=(0, log.stat().st_size))

    report.to_html(folder / "report.html")

    page = (folder / "report.html").read_text("utf-8")
    assert len(page) < 2e6
    assert "The log is long: there is no room here for all records" in page
    assert page.count('<td class="INFO">') > 100
    assert "<td>0 xxx" not in page


def test_the_last_records_of_an_input_are_shown(folder: Path) -> None:
    """They explain the failure."""
    log = folder / "log.jsonl"
    with log.open("w") as file:
        for number in range(50):
            record = log_file.entry("INFO", "0123456789ab", 0, "0", "", f"record {number}.")
            file.write(log_file.line(record))
    ledger = ledger_of(1, failure=lambda n: Failure(n, "process", "exception", "E", "no"))

    report_of(ledger, logfile=str(log), log_part=(0, log.stat().st_size)).to_html("report.html")

    page = (folder / "report.html").read_text("utf-8")
    shown = re.findall(r"record (\d+)\.", page)
    assert shown == [str(number) for number in range(30, 50)]
    assert "30 earlier records are in the log." in page
    assert "The log is long" not in page


def test_where_the_log_is_too_long_the_page_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure_sample, "LOG_BYTES", 2**20)
    report = of_three_causes(100_000, folder / "log.jsonl")
    report.to_html("report.html")
    assert "only its first 1 MiB were looked through" in (folder / "report.html").read_text("utf-8")


def told(path: Path) -> str:
    """How the run ended, as the page says."""
    found = re.search("<h1[^>]*>(.*?)</h1>", path.read_text("utf-8"))
    assert found is not None
    return found[1].replace("&#39;", "'")


def test_it_is_written_for_an_empty_list(folder: Path) -> None:
    run([], None, print, report_path="report.html")
    assert told(folder / "report.html") == "Finished; all is done."


def test_it_is_not_written_where_nothing_has_begun(folder: Path) -> None:
    with pytest.raises(at_once_dask.InputError):
        run([1], None, print, report_path="report.html", client=3)
    lock = threading.Lock()
    with pytest.raises(at_once_dask.InputError):
        run([1], None, lambda inp: lock, report_path="report.html")
    assert not (folder / "report.html").exists()


def test_records_of_others_are_not_shown(folder: Path) -> None:
    log = folder / "log.jsonl"
    at_once_dask.log({"run": "0123456789ab", "index": 0, "secret": "nested"})
    records = [
        log_file.entry("INFO", "0123456789ab", 0, "", "", "mine"),
        log_file.entry("INFO", "another run.", 0, "", "", "of another run"),
        log_file.entry("INFO", "0123456789ab", 1, "", "", "of another input"),
    ]
    with log.open("a") as file:
        file.writelines(map(log_file.line, records))
        size = file.tell()
        file.write(log_file.line(log_file.entry("INFO", "0123456789ab", 0, "", "", "later")))
    ledger = ledger_of(1, failure=lambda n: Failure(n, "process", "exception", "E", "no"))

    report_of(ledger, logfile=str(log), log_part=(0, size)).to_html("report.html")

    page = (folder / "report.html").read_text("utf-8")
    assert page.count('<td class="INFO">') == 1
    assert "mine" in page


@pytest.mark.parametrize("given", [3, "", ".", "no such folder/report.html"])
def test_to_html_says_what_is_wrong_with_a_path(given: Any) -> None:
    with pytest.raises(at_once_dask.InputError) as refused:
        run([], None, print).to_html(given)
    assert str(refused.value).startswith(f"path is {given!r}, ")
    assert str(refused.value).endswith(": report.to_html('report.html')")
