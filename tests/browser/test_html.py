"""The report as a file: what it shows, in a real browser without a network; written at any end."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium, complaints
from distributed import Client
from helpers import poll_for
from runs import ending_of, ledger_of, mixed_ledger, report_of
from scripts import started

import at_once_dask
from at_once_dask.logs import log_file
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.status import FAILED
from at_once_dask.report import failure_sample
from at_once_dask.report.report import Report

run: Any = at_once_dask.run

WIDE, NARROW = 1200, 390  # pixels
TIMES = "\N{MULTIPLICATION SIGN}"
HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "</code></pre></summary></style></title><svg onload='window.hacked = 1'>",
    "{{ 7 * 7 }}",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """It reaches no host."""
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile, "--host-resolver-rules=MAP * ~NOTFOUND") as driver:
        yield driver


@pytest.fixture
def chrome(browser: Any) -> Iterator[Any]:
    yield browser
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.get("about:blank")
    complaints(browser)  # of this test: the next one sees its own


def show(chrome: Any, path: Path, width: int = WIDE) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chrome.get(path.as_uri())


def js(chrome: Any, expression: str) -> Any:
    return chrome.execute_script(f"return {expression}")


def check_calm(chrome: Any) -> None:
    """Nothing was executed, nothing was asked of the network, nothing sticks out."""
    assert js(chrome, "window.hacked") is None
    assert js(chrome, "document.querySelectorAll('script, img, [onload], [onerror]').length") == 0
    assert js(chrome, "performance.getEntriesByType('resource').length") == 0
    assert js(chrome, "document.documentElement.scrollWidth <= innerWidth")
    assert complaints(chrome) == []


def text(chrome: Any, selector: str) -> str:
    """All that is in it, be it folded or not."""
    found: str = js(chrome, f"document.querySelector({json.dumps(selector)}).textContent")
    return " ".join(found.split())


def count(chrome: Any, selector: str) -> int:
    found: int = js(chrome, f"document.querySelectorAll({json.dumps(selector)}).length")
    return found


# ----- what it shows


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


def test_the_report_of_a_run(cluster: Client, folder: Path, chrome: Any) -> None:
    path = folder / "report.html"
    inputs = [*range(1, 120), *HOSTILE, "wide" * 200]
    report = run(
        inputs,
        None,
        fragile,
        timeout=1,
        on_error="return",
        report_path=path,
        progress=False,
    )

    show(chrome, path)

    check_calm(chrome)
    assert text(chrome, "h1") == "Finished; 9 inputs failed."
    assert text(chrome, ".tally") == "inputs 124 processed 115 skipped 0 failed 9 left 0"
    causes = text(chrome, "#causes")
    assert f"5 {TIMES} ValueError in process at" in causes
    assert f"1 {TIMES} SIGSEGV in process (crash) at" in causes
    assert f"1 {TIMES} TimeoutError in process (timeout) at" in causes
    assert "e.g. input 30: its worker died: SIGSEGV" in causes
    failures = text(chrome, "#failures")
    assert all(hostile in failures for hostile in HOSTILE)
    assert "Fatal Python error: Segmentation fault" in failures
    assert "time.sleep(600)" in failures
    assert "Traceback (most recent call last)" in failures
    assert all(f"INFO looking at {inp}" in failures for inp in (30, 60, 50, *HOSTILE))
    assert "INFO looking at 31" not in failures
    assert count(chrome, ".timeline svg") == len(report.items["worker"].cat.categories) >= 3
    assert count(chrome, ".timeline path.s2") >= 3
    assert count(chrome, ".histogram rect.s1") > 0
    assert re.search(r"took position input 1(\.\d)? s 59 60 ", text(chrome, "#slowest"))
    settings = text(chrome, "#settings")
    assert "process_inp fragile" in settings
    assert "timeout 1 " in settings
    assert f"at_once_dask {at_once_dask.__version__}" in settings


def test_nothing_sticks_out_on_a_telephone(cluster: Client, folder: Path, chrome: Any) -> None:
    path = folder / "report.html"
    inputs = ["wide" * 500, *HOSTILE, 50]
    run(inputs, None, fragile, on_error="return", report_path=path, progress=False)
    opened = folder / "opened.html"
    opened.write_text(path.read_text("utf-8").replace("<details", "<details open"), "utf-8")

    show(chrome, opened, NARROW)

    assert js(chrome, "document.documentElement.scrollWidth") <= NARROW
    assert count(chrome, "details[open]") == len(inputs)
    check_calm(chrome)


def test_it_is_the_escapes_that_keep_hostile_text_quiet(
    cluster: Client, folder: Path, chrome: Any
) -> None:
    """The page forbids scripts as well; without that, nothing is executed either."""
    path, open_to_all = folder / "report.html", folder / "open.html"
    run(
        HOSTILE,
        None,
        lambda inp: {inp: inp},
        reduce_fn=explode,
        on_error="return",
        report_path=path,
        progress=False,
    )
    page = path.read_text("utf-8")
    policy = re.compile(r"<meta http-equiv=.Content-Security-Policy.[^>]*>")
    assert len(policy.findall(page)) == 1
    open_to_all.write_text(policy.sub("", page), "utf-8")

    show(chrome, open_to_all)

    check_calm(chrome)
    assert text(chrome, "h1") == "Finished; 4 keys failed."
    assert all(hostile in text(chrome, "#failures") for hostile in HOSTILE)
    assert count(chrome, "#failures .log tr") == 2 * len(HOSTILE)


def explode(values: list[str]) -> None:
    at_once_dask.log(values[0])
    raise RuntimeError(values[0])


def test_what_went_wrong_comes_before_how_long_it_took(folder: Path, chrome: Any) -> None:
    of_three_causes(10, folder / "log.jsonl").to_html("report.html")
    show(chrome, folder / "report.html")
    sections = js(chrome, "[...document.querySelectorAll('section')].map(one => one.id)")
    parts = ["summary", "causes", "workers", "failures", "durations", "slowest", "settings"]
    assert sections == parts


def test_on_paper_all_is_open(folder: Path, chrome: Any) -> None:
    of_three_causes(10, folder / "log.jsonl").to_html("report.html")
    show(chrome, folder / "report.html")
    closed = "[...document.querySelectorAll('details:not([open]) > p')]"
    seen = f"{closed}.map(one => one.checkVisibility())"
    assert set(js(chrome, seen)) == {False}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert set(js(chrome, seen)) == {True}


# ----- large runs


def check_light(chrome: Any, path: Path) -> None:
    """Under 5 MB, and loaded within two seconds."""
    assert path.stat().st_size < 5e6
    show(chrome, path)
    ended = "performance.getEntriesByType('navigation')[0].loadEventEnd"  # 0 until then
    poll_for(lambda: js(chrome, ended), "the page is not loaded")
    assert js(chrome, ended) < 2_000
    check_calm(chrome)


def test_many_inputs_that_are_alike(folder: Path, chrome: Any) -> None:
    report = report_of(ledger_of(100_000, seconds=0.01))

    report.to_html(folder / "report.html")

    check_light(chrome, folder / "report.html")
    assert "inputs 100,000 processed 100,000" in text(chrome, ".tally")
    assert count(chrome, ".timeline svg") == 2
    assert text(chrome, ".timeline .axis") == "0 s 2:00 4:00 6:00 8:00"
    assert count(chrome, ".histogram rect") >= 1


@pytest.mark.thorough
def test_a_million_inputs_of_every_kind(folder: Path, chrome: Any) -> None:
    """Random durations and states, so that nothing can be merged away, and a log of all of them."""
    ledger = mixed_ledger(1_000_000)
    log = folder / "log.jsonl"
    with log.open("w") as file:
        for position in range(0, 1_000_000, 10):
            record = log_file.entry("INFO", "0123456789ab", position, "", "", "about it")
            file.write(log_file.line(record))
        for failed in ledger.failed:
            record = log_file.entry("ERROR", "0123456789ab", failed.index, "", "", "it has failed")
            file.write(log_file.line(record))
    report = report_of(ledger, logfile=str(log), log_part=(0, log.stat().st_size))

    report.to_html(folder / "report.html")

    check_light(chrome, folder / "report.html")
    n_failed = ledger.counts[FAILED]
    assert f"skipped {report.n_skipped:,} failed {n_failed:,} left 0" in text(chrome, ".tally")
    assert 100_000 < report.n_skipped < report.n_processed
    assert count(chrome, ".timeline path") == 6
    assert count(chrome, ".histogram rect.s1") > 20
    assert count(chrome, ".histogram rect.s2") > 10
    assert count(chrome, "#failures h3") == 7
    assert count(chrome, "details[id]") == failure_sample.MOST_FAILURES
    assert count(chrome, "#failures td.ERROR") == failure_sample.MOST_FAILURES


@pytest.mark.thorough
def test_100_000_failures_of_three_causes(folder: Path, chrome: Any) -> None:
    log = folder / "log.jsonl"
    report = of_three_causes(100_000, log)

    report.to_html(folder / "report.html")

    check_light(chrome, folder / "report.html")
    assert count(chrome, "#causes li") == count(chrome, "#failures h3") == 3
    assert f"33,334 {TIMES} ValueError in process at cause 0" in text(chrome, "#causes")
    assert count(chrome, "details[id]") == failure_sample.MOST_FAILURES
    named = text(chrome, "#failures details.named pre").split()
    assert named[:4] == ["300", "300", "303", "303"]
    n_hidden = 33_234 - len(named) // 2
    assert 10_000 < n_hidden < 30_000
    assert f"{n_hidden:,} more like these are not shown here" in text(chrome, "#failures .hidden")
    assert "about 0" in text(chrome, "#failure-0 .log")


def of_three_causes(n: int, log: Path, about: str = "about") -> Report:
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
            record = log_file.entry("INFO", "0123456789ab", position, "", "", f"{about} {position}")
            file.write(log_file.line(record))
    return report_of(ledger, logfile=str(log), log_part=(0, log.stat().st_size))


def test_of_keys_that_are_called_the_same_no_record_is_shown(cluster: Client, folder: Path) -> None:
    """The log knows keys by their repr only."""
    long = "long" * 100
    keys = [long + "one", long + "two", None, ("a", 1), Twin(1), Twin(2)]

    def process(inp: int) -> dict[Any, int]:
        return {keys[inp]: inp}

    def reduce_fn(values: list[int]) -> None:
        at_once_dask.log(f"value {values[0]}.")
        raise ValueError("no")

    def inputs() -> Iterator[int]:
        at_once_dask.log("of the driver")
        yield from range(len(keys))

    run(
        inputs(),
        None,
        process,
        reduce_fn=reduce_fn,
        on_error="return",
        report_path="report.html",
        progress=False,
    )

    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<details") == len(keys)
    assert sorted(re.findall(r"value (\d)\.", page)) == ["2", "3"]  # None, and the tuple
    assert "of the driver" not in page


class Twin:
    """Different keys that are called the same."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Twin) and self.n == other.n

    def __hash__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return "Twin"


# ----- when it is written


def test_it_is_written_when_all_went_well(cluster: Client, folder: Path) -> None:
    path = folder / "report.html"
    run(range(10), lambda n: [n < 3, None], print_nothing, report_path=path, progress=False)
    assert ending_of(path) == "Finished; all is done."


def print_nothing(inp: object) -> None:
    pass


def test_it_is_written_where_it_was_wanted(cluster: Client, folder: Path) -> None:
    """A relative path counts from the current directory as of the call."""
    (folder / "elsewhere").mkdir()

    def moving() -> Iterator[int]:
        yield 1
        os.chdir("elsewhere")
        yield 2

    run(moving(), None, print_nothing, report_path="report.html", progress=False)
    assert ending_of(folder / "report.html") == "Finished; all is done."


def test_it_is_written_when_the_run_stopped(cluster: Client, folder: Path) -> None:
    path = folder / "report.html"
    with pytest.raises(at_once_dask.RunStopped):
        run([*range(100), 0, 0], None, invert, on_error="stop", report_path=path, progress=False)
    assert ending_of(path) == "Stopped early: an input failed, and on_error is 'stop'."
    assert "ZeroDivisionError" in path.read_text("utf-8")


def invert(inp: float) -> float:
    return 1 / inp


def test_it_is_written_when_the_list_raised(cluster: Client, folder: Path) -> None:
    path = folder / "report.html"

    def broken() -> Iterator[int]:
        yield from range(5)
        raise OSError("the tape is torn")

    with pytest.raises(OSError, match="torn") as raised:
        run(broken(), None, print_nothing, report_path=path, progress=False)
    assert ending_of(path) == "Broken off: the list itself raised OSError: the tape is torn."
    assert "in broken" in path.read_text("utf-8")
    assert raised.value.report.n_processed == 5  # type: ignore[attr-defined]


INTERRUPTED_LATE = """
import os, signal, sys
import at_once_dask

def interrupt(event, args):
    if event == "open" and str(args[0]).endswith("templates/report.html"):
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(interrupt)
try:
    at_once_dask.run([], None, print, report_path="report.html")
except KeyboardInterrupt as error:
    print(error.report.ok, error.report is at_once_dask.last_report(), flush=True)
"""


def test_ctrl_c_while_it_is_written(folder: Path) -> None:
    """All is done by then: the file says so, and the interrupt is not lost."""
    with started(INTERRUPTED_LATE, folder) as script:
        script.process.wait(60)
        assert script.out == ["True True"], script.err
    assert ending_of(folder / "report.html") == "Finished; all is done."


def test_what_hinders_it_costs_no_result(
    cluster: Client, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = folder / "lost"
    lost.mkdir()
    path = lost / "report.html"

    def process(inp: str) -> dict[str, int]:
        shutil.rmtree(lost, ignore_errors=True)
        return {inp: 1}

    result = run(["a", "b"], None, process, reduce_fn=sum, report_path=path, progress=False)

    assert result == {"a": 1, "b": 1}
    out, err = capsys.readouterr()
    assert out == ""
    assert f"the report could not be written to {str(path)!r}" in err
    lost.mkdir()
    at_once_dask.last_report().to_html(path)  # type: ignore[union-attr]
    assert ending_of(path) == "Finished; all is done."


def test_what_hinders_it_costs_no_exception(
    cluster: Client, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = folder / "lost"
    lost.mkdir()

    def broken() -> Iterator[int]:
        yield 1
        lost.rmdir()
        raise OSError("the tape is torn")

    with pytest.raises(OSError, match="torn"):
        run(broken(), None, print_nothing, report_path=lost / "report.html", progress=False)
    assert "could not be written" in capsys.readouterr().err


def test_the_second_file_is_the_same(cluster: Client, folder: Path) -> None:
    report = run(
        [1, 0, "x"], None, fragile_too, on_error="return", report_path="1.html", progress=False
    )
    at_once_dask.log("later")
    run([0], None, fragile_too, on_error="return", progress=False)

    report.to_html("2.html")
    pickle.loads(pickle.dumps(report)).to_html(folder / "3.html")

    first = (folder / "1.html").read_bytes()
    assert b"ZeroDivisionError" in first
    assert b"about 0" in first
    assert (folder / "2.html").read_bytes() == first
    assert (folder / "3.html").read_bytes() == first


def fragile_too(inp: Any) -> None:
    at_once_dask.log(f"about {inp}")
    invert(inp)


def test_failures_without_a_message_or_a_traceback(cluster: Client, folder: Path) -> None:
    def process(inp: int) -> Any:
        if inp == 0:
            raise ValueError
        return inp  # no pairs: nothing was raised

    run(
        [0, 1],
        None,
        process,
        reduce_fn=sum,
        on_error="return",
        report_path="report.html",
        progress=False,
    )
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<details") == 2
    assert page.count("<pre>") == 1


def test_a_log_that_is_gone_is_missed(cluster: Client, folder: Path) -> None:
    report = run([0], None, invert, on_error="return", progress=False)
    (folder / "log.jsonl").unlink()
    report.to_html("report.html")
    assert "The log cannot be read: No such file" in (folder / "report.html").read_text("utf-8")
