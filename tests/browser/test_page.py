"""The page "At once" in the dashboard, as a browser shows it, and the JSON address beside it."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin, urlsplit

import dask
import psutil
import pytest
from chromium import chromium, complaints
from distributed import Client, LocalCluster
from helpers import poll_for

import at_once_dask
from at_once_dask import Report
from at_once_dask.cluster import connect
from at_once_dask.live.page import AtOncePage, beside

HOSTILE = '<script>document.body.className = "taken"</script>"><img src=x onerror=document.title=1>'


class Evil:
    """An input whose repr would take over a page that did not escape it."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __repr__(self) -> str:
        return f"{HOSTILE}{self.n}"


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile"), "--window-size=1200,1000") as driver:
        yield driver


@pytest.fixture(autouse=True)
def _no_page_stays_open(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "chrome" in request.fixturenames:
        driver = request.getfixturevalue("chrome")
        driver.get("about:blank")
        complaints(driver)  # of this test: the next one sees its own


@pytest.fixture
def page(cluster: Client) -> str:
    """Its address."""
    address: str = urljoin(cluster.dashboard_link, "at-once")
    return address


class Going:
    """A run in another thread; its inputs may wait for `release`."""

    def __init__(self, folder: Path, *args: Any, **kwargs: Any) -> None:
        self._gate = folder / "go on"
        self._result: Any = None
        self._error: BaseException | None = None
        self._run: Any = partial(at_once_dask.run, on_error="return", progress=False)
        self._thread = threading.Thread(target=self._go, args=args, kwargs=kwargs)

    def __enter__(self) -> Going:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _go(self, *args: Any, **kwargs: Any) -> None:
        try:
            self._result = self._run(*args, **kwargs)
        except BaseException as error:
            self._error = error

    def release(self) -> Any:
        """Its result; what it raised, if it did."""
        self._gate.touch()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result


def waiting(folder: Path, hung: int, n: Callable[[Any], int] = int) -> Any:
    """A `process_inp`: one input waits, of the others one in ten fails."""

    def process(inp: Any) -> None:
        if n(inp) == hung:
            wait_in(folder)
        elif n(inp) % 10 == 1:
            raise ValueError(f"{HOSTILE} is no number")

    return process


def wait_in(folder: Path) -> None:
    """Until it is released, or a minute has passed: a browser takes its time."""
    end = time.monotonic() + 60
    while not (folder / "go on").exists() and time.monotonic() < end:
        threading.Event().wait(0.02)


def facts(page: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{page}.json?{urlencode(query)}", timeout=10) as answer:
        assert answer.headers.get_content_type() == "application/json"
        assert "Access-Control-Allow-Origin" not in answer.headers
        return json.load(answer)


def seen(page: str, part: str) -> Any:
    """A list among the facts; empty before there is a run."""
    run = facts(page)["run"]
    return [] if run is None else run[part]


def refused(address: str) -> tuple[int, bytes]:
    """Status and text of an answer that is an error."""
    with pytest.raises(HTTPError) as caught:
        urllib.request.urlopen(address, timeout=10)
    with caught.value as answer:
        return answer.code, answer.read()


def connections(page: str) -> list[str]:
    """Of this process with who looks at the page, or waits for somebody to do so."""
    port = urlsplit(page).port
    found = psutil.Process().net_connections("tcp")
    return [
        connection.status
        for connection in found
        if connection.laddr.port == port and connection.status != psutil.CONN_TIME_WAIT
    ]


def see(chrome: Any, address: str) -> None:
    """Open a page; the first one ever is there when Bokeh is loaded."""
    chrome.get(address)
    poll_for(lambda: chrome.title != "Dask dashboard", "the dashboard is not built")


def text(chrome: Any, selector: str) -> str:
    found: str = chrome.execute_script(
        "return (document.querySelector(arguments[0]) || {textContent: ''}).textContent", selector
    )
    return found


def count(chrome: Any, name: str) -> str:
    return text(chrome, f'#counts [data-count="{name}"] dd')


def shows(chrome: Any, selector: str, expected: str) -> None:
    poll_for(
        lambda: expected in text(chrome, selector),
        f"{selector} does not show {expected!r}",
        lambda: text(chrome, selector),
    )


def counts_of(report: Report) -> dict[str, int]:
    return {
        "total": report.n_inputs,
        "processed": report.n_processed,
        "skipped": report.n_skipped,
        "failed": report.n_failed,
        "pending": 0,
        "left": report.n_left,
    }


# --- in a browser


def test_a_run_from_its_start_to_its_end(page: str, chrome: Any, folder: Path) -> None:
    see(chrome, page)
    process = waiting(folder, hung=0)
    with Going(folder, range(100), lambda n: [n > 0 and n % 10 == 0, None], process) as run:
        shows(chrome, "#state", "running: map")
        shows(chrome, '#counts [data-count="left"] dd', "1")
        shows(chrome, '#counts [data-count="failed"] dd', "10")
        assert text(chrome, "#workers tr:first-child .input") == "0"
        assert text(chrome, "#name") == "process"
        assert count(chrome, "ETA")
        report = run.release()
        shows(chrome, "#state", "failed")
    shown = {name: count(chrome, name) for name in ("processed", "skipped", "failed", "left")}
    assert shown == {
        "processed": str(report.n_processed),
        "skipped": str(report.n_skipped),
        "failed": str(report.n_failed),
        "left": "0",
    }
    assert report.n_failed == 10
    assert complaints(chrome) == []


@pytest.mark.thorough
def test_the_hung_input_stands_out(page: str, chrome: Any, folder: Path) -> None:
    see(chrome, page)
    process = waiting(folder, 33, lambda evil: int(evil.n))
    with Going(folder, [Evil(n) for n in range(40)], None, process):
        shows(chrome, "#workers tr.long .input", f"{HOSTILE}33")
        (mine,) = [row for row in facts(page)["run"]["workers"] if row["long"]]
        shows(chrome, "#workers tr.long", "process")
        shows(chrome, "#workers tr.long", mine["worker"].removeprefix("tls://"))
        assert (mine["index"], mine["input"]) == (33, f"{HOSTILE}33")
        assert text(chrome, "#workers tr:first-child .input") == f"{HOSTILE}33"
    assert complaints(chrome) == []


@pytest.mark.thorough
def test_a_traceback_after_a_click_that_stays_open(page: str, chrome: Any, folder: Path) -> None:
    see(chrome, page)
    process = waiting(folder, 39, lambda evil: int(evil.n))
    with Going(folder, [Evil(n) for n in range(40)], None, process) as run:
        shows(chrome, "#causes", "ValueError")
        chrome.find_element("css selector", "#causes summary").click()
        shows(chrome, "#causes pre", "Traceback (most recent call last)")
        assert f"ValueError: {HOSTILE} is no number" in text(chrome, "#causes pre")
        assert text(chrome, "#causes .example") == f"for example {HOSTILE}1"
        run.release()
        shows(chrome, "#state", "failed")
    assert chrome.find_element("css selector", "#causes pre").is_displayed()
    shows(chrome, "#causes .count", "4 \N{MULTIPLICATION SIGN}")
    assert chrome.execute_script("return document.querySelectorAll('#at-once img').length") == 0
    assert chrome.execute_script("return document.querySelectorAll('#at-once script').length") == 0
    assert chrome.execute_script("return document.body.className") == ""
    assert "At once" in chrome.title
    assert complaints(chrome) == []


WITHOUT = """
const real = fetch;
fetch = async (...asked) => {
    const facts = await (await real(...asked)).json();
    if (facts.run) Object.assign(facts.run, {causes: [], name: "without"});
    return Response.json(facts);
};
"""


@pytest.mark.thorough
def test_a_traceback_that_is_read_stays_while_the_run_goes_on(
    page: str, chrome: Any, folder: Path
) -> None:
    """Though its cause may not be among the most frequent any more."""
    see(chrome, page)
    with Going(folder, range(40), None, waiting(folder, 3)):
        shows(chrome, "#causes", "ValueError")
        chrome.find_element("css selector", "#causes summary").click()
        shows(chrome, "#causes pre", "Traceback (most recent call last)")
        chrome.execute_script(WITHOUT)
        shows(chrome, "#name", "without")
        assert chrome.find_element("css selector", "#causes pre").is_displayed()


@pytest.mark.thorough
def test_what_is_drawn_is_told_in_words_too(page: str, chrome: Any, folder: Path) -> None:
    """And where nobody knows how many inputs there are, no share of them is drawn."""

    def label(selector: str) -> str:
        found = chrome.find_element("css selector", selector).get_attribute("aria-label")
        return str(found)

    def slowly() -> Iterator[int]:
        yield from range(8)
        wait_in(folder)
        yield 8

    see(chrome, page)
    with Going(folder, slowly(), None, waiting(folder, 3)) as run:
        shows(chrome, "#state", "running: map")
        assert label("#bar") == "nobody knows how many inputs there are"
        assert chrome.find_elements("css selector", "#bar.unknown")
        run.release()
        shows(chrome, "#state", "failed")
    assert label("#bar") == "8 processed, 0 skipped, 1 failed of 9"
    assert not chrome.find_elements("css selector", "#bar.unknown")
    assert label("#plot").startswith("the rate over time: at most ")


def test_a_failed_run_stays_and_earlier_ones_are_a_click_away(
    page: str, chrome: Any, folder: Path
) -> None:
    def first(n: int) -> float:
        return 1 / n

    def second(n: int) -> None:
        """Nothing fails."""

    with pytest.raises(at_once_dask.RunFailed) as caught:
        at_once_dask.run(range(3), None, first, progress=False)
    see(chrome, page)
    shows(chrome, "#causes", "ZeroDivisionError")
    at_once_dask.run(range(3), None, second, progress=False)
    shows(chrome, "#name", "second")
    chrome.find_element("link text", "first").click()
    shows(chrome, "#name", "first")
    chrome.find_element("css selector", "#causes summary").click()
    shows(chrome, "#causes pre", "ZeroDivisionError: division by zero")
    assert caught.value.report.run in text(chrome, "#about")
    assert complaints(chrome) == []


def test_it_fits_a_phone(page: str, chrome: Any, folder: Path) -> None:
    names = [f"/a/long/path/that/has/no/space/{'x' * 60}/{n}" for n in range(20)]
    at_once_dask.run(names, None, lambda name: 1 / 0, on_error="return", progress=False)
    see(chrome, page)
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        shows(chrome, "#causes", "ZeroDivisionError")
        chrome.find_element("css selector", "#causes summary").click()
        shows(chrome, "#causes pre", "ZeroDivisionError")
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [390, 900, 1100, 1600])
def test_the_tabs_do_not_lie_on_the_heading(page: str, chrome: Any, width: int) -> None:
    see(chrome, page)
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        poll_for(lambda: text(chrome, "#name"), "no run is shown")
        box = "return document.querySelector(arguments[0]).getBoundingClientRect()"
        tabs = chrome.execute_script(f"{box}.bottom", "#myTopnav")
        heading = chrome.execute_script(f"{box}.top", "#name")
        assert 0 < tabs <= heading
    finally:
        chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.thorough
def test_the_tab_on_dasks_own_pages(page: str, chrome: Any) -> None:
    see(chrome, urljoin(page, "status"))
    tabs = {link.text: link for link in chrome.find_elements("css selector", "#myTopnav li a")}
    assert list(tabs)[1:3] == ["Status", "At once"]
    tabs["At once"].click()
    poll_for(lambda: chrome.current_url == page, "the tab leads elsewhere")
    assert "Workers" in text(chrome, "#myTopnav")
    shows(chrome, "#name", "print_nothing")  # the run of the fixture, or of a test before


@pytest.mark.thorough
def test_a_tab_is_told_of_the_end_and_shows_the_next_cluster(
    page: str, chrome: Any, recwarn: pytest.WarningsRecorder
) -> None:
    """On the same port; that of the cluster which the tests share."""
    see(chrome, page)
    shows(chrome, "#name", "print_nothing")
    poll_for(lambda: connections(page), "the tab is not connected")
    at_once_dask.close()
    assert connections(page) == []
    shows(chrome, "#notice", "The cluster does not answer")
    at_once_dask.start(2, dashboard_address=urlsplit(page).netloc)
    try:
        at_once_dask.run([1], None, print_less, progress=False)
        shows(chrome, "#name", "print_less")
        assert text(chrome, "#notice") == ""
        see(chrome, page)
        shows(chrome, "#name", "print_less")
    finally:
        chrome.get("about:blank")
        at_once_dask.close()
    assert [str(warning.message) for warning in recwarn] == []


STOPPED = """
import sys
import at_once_dask

print(at_once_dask.start(1, dashboard_address="127.0.0.1:0").dashboard_link, flush=True)
at_once_dask.run([1], None, print, progress=False)
sys.stdin.read()
at_once_dask.close()
"""


@pytest.mark.slow
def test_a_stopped_program_is_told(folder: Path) -> None:
    command = [sys.executable, "-c", STOPPED]
    pipe = subprocess.PIPE
    with (
        chromium(folder / "profile") as chrome,  # one of its own: it starts more processes
        subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, text=True) as driver,
    ):
        assert driver.stdin is not None
        assert driver.stdout is not None
        impatient = "const wait = AbortSignal.timeout; AbortSignal.timeout = ms => wait(ms / 5)"
        chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": impatient})
        see(chrome, urljoin(driver.stdout.readline().strip(), "at-once"))
        shows(chrome, "#state", "done")
        driver.send_signal(signal.SIGSTOP)
        try:
            poll_for(lambda: text(chrome, "#notice"), "the page says nothing", seconds=20)
            assert "is stopped" in text(chrome, "#notice")
        finally:
            driver.send_signal(signal.SIGCONT)
        poll_for(lambda: not text(chrome, "#notice"), "the page does not go on")
        driver.stdin.close()
        shows(chrome, "#notice", "The cluster does not answer")


@pytest.mark.thorough
def test_what_is_no_json_comes_from_somebody_else(page: str, chrome: Any) -> None:
    see(chrome, page)
    shows(chrome, "#state", "done")
    chrome.execute_script("fetch = async () => new Response('<h1>Bad gateway</h1>')")
    shows(chrome, "#notice", "What answers here is not the cluster")


def test_the_address_with_a_slash_leads_to_the_page(page: str, chrome: Any) -> None:
    see(chrome, f"{page}/?run=none")
    assert chrome.current_url == f"{page}?run=none"
    shows(chrome, "#notice", "no run none is known here")


@pytest.mark.thorough
@pytest.mark.parametrize("n", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_failures_of_three_causes(page: str, chrome: Any, folder: Path, n: int) -> None:
    """What the page costs does not grow with them."""

    def process(n: int) -> None:
        if n == 0:  # the first: what others have done before it would be told when it ends
            wait_in(folder)
        if n % 3 == 0:
            raise ValueError(f"{HOSTILE}{n}")
        if n % 3 == 1:
            raise OSError(f"{n} is gone" * 10)
        raise KeyError(n)

    see(chrome, page)
    with Going(folder, range(n + 1), None, process) as run:
        poll_for(lambda: n_failed() == n, "the others are not done", n_failed, seconds=60)
        shows_all_failures(chrome)
        look = "const begun = performance.now(); const done = arguments[0];"
        look += "fetch('at-once.json').then(a => a.text())"
        look += ".then(text => done([performance.now() - begun, text.length]))"
        looks, loads = [], []
        for _ in range(5):  # the best of them: the machine has other things to do, too
            milliseconds, size = chrome.execute_async_script(look)
            looks.append(milliseconds / 1000)
            assert size < 100_000
            begun = time.monotonic()
            chrome.get(page)
            shows_all_failures(chrome)
            loads.append(time.monotonic() - begun)
        assert min(looks) < 1, looks
        assert min(loads) < 1, loads
        causes = chrome.find_elements("css selector", "#causes details")
        assert len(causes) == 3
        report = run.release()
        shows(chrome, '#counts [data-count="failed"] dd', f"{report.n_failed:,}")
    told = facts(page)["run"]
    assert told["inputs"] == counts_of(report)
    assert [cause["count"] for cause in told["causes"]] == report.causes["count"].tolist()
    assert complaints(chrome) == []


def n_failed() -> int:
    """Inputs of the latest run."""
    assert connect._own is not None
    page: Any = connect._own.page
    (latest, *_) = page.monitor.brief()
    return int(latest["inputs"]["failed"])


def shows_all_failures(chrome: Any) -> None:
    poll_for(lambda: count(chrome, "failed") == f"{n_failed():,}", "it does not show all failures")


# --- the JSON address


def test_what_is_told_equals_the_report(page: str) -> None:
    result = at_once_dask.run(
        range(50),
        lambda n: [n < 20, [(n % 7, n)]],
        lambda n: [(n % 7, 100 // (n - 25))],
        reduce_fn=lambda values: 1 // (len(values) - 7),
        on_error="return",
        progress=False,
    )
    report, told = result.report, facts(page)["run"]
    assert told["id"] == report.run
    assert told["state"] == "failed"
    assert told["inputs"] == counts_of(report)
    keys = {"total": 7, "reduced": len(result), "failed": report.n_keys_failed, "left": 0}
    assert told["keys"] == keys
    assert 0 < report.n_keys_failed < 7
    causes = report.causes
    assert told["n_causes"] == len(causes) == 2
    for shown, (_, known) in zip(told["causes"], causes.iterrows(), strict=True):
        same = ["kind", "stage", "error", "where", "count", "message"]
        assert [shown[name] for name in same] == known[same].tolist()
        assert shown["example"] == repr(known["example"])
        traceback = facts(page, run=report.run, cause=shown["id"])["traceback"]
        assert "ZeroDivisionError" in traceback
    assert told["slowest"][0]["seconds"] == pytest.approx(report.items["seconds"].max(), abs=1e-3)
    assert [one["phase"] for one in told["rates"]] == ["map", "reduce"]
    assert facts(page)["runs"][0]["id"] == report.run


def test_a_reduction_shows_its_keys(page: str, folder: Path) -> None:
    def reduce_fn(values: list[int]) -> int:
        if 3 in values:
            wait_in(folder)
        return sum(values)

    pairs = lambda n: [(f"key {n}", n)]  # noqa: E731
    with Going(folder, range(10), None, pairs, reduce_fn=reduce_fn) as run:
        poll_for(
            lambda: (
                [at["input"] for at in (facts(page)["run"] or {"workers": []})["workers"]][:1]
                == ["'key 3'"]
            ),
            "the key is not shown",
            lambda: facts(page)["run"]["workers"],
        )
        told = facts(page)["run"]
        assert told["phase"] == "reduce"
        (first, _) = told["workers"]
        assert (first["input"], first["index"], first["stage"]) == ("'key 3'", None, "reduce")
        assert len(run.release()) == 10


def test_how_it_ended(page: str) -> None:
    def told() -> list[Any]:
        run = facts(page)["run"]
        return [run["state"], run["reason"]]

    at_once_dask.run([1], None, print_less, progress=False)
    assert told() == ["done", None]
    with pytest.raises(at_once_dask.RunStopped):
        at_once_dask.run(range(200), None, lambda n: 1 / 0, on_error="stop", progress=False)
    assert told() == ["stopped", "an input failed, and on_error is 'stop'"]
    with pytest.raises(OSError, match="unplugged"):
        at_once_dask.run(unplugged(), None, print_less, progress=False)
    assert told() == ["broken", "the list itself raised OSError: unplugged"]
    driver = os.getpid()
    with pytest.raises(KeyboardInterrupt):
        at_once_dask.run([1], None, lambda n: os.kill(driver, signal.SIGINT), progress=False)
    assert told() == ["interrupted", "Ctrl-C"]
    at_once_dask.plan(range(9), lambda n: [n < 4, None], progress=False)
    plan = facts(page)["run"]
    assert (plan["phase"], plan["inputs"]["skipped"], plan["inputs"]["pending"]) == ("check", 4, 5)


def test_runs_that_are_not_known(page: str) -> None:
    for query in ({"run": "nonesuch"}, {"cause": "nonesuch"}, {"run": "", "cause": "x"}):
        status, answer = refused(f"{page}.json?{urlencode(query)}")
        assert status == 404
        assert "lists those that are" in json.loads(answer)["error"]


@pytest.mark.thorough
def test_only_the_latest_runs_are_kept_and_nothing_of_them(page: str) -> None:
    """Neither their inputs nor their ledgers, also when somebody has looked meanwhile."""
    refs: list[weakref.ref[Any]] = []
    for _ in range(21):
        inputs = [Evil(n) for n in range(9)]
        refs += map(weakref.ref, inputs)
        looker = threading.Thread(target=facts, args=[page])
        looker.start()
        at_once_dask.run(inputs, None, print_less, progress=False)
        looker.join()
        refs.append(weakref.ref(at_once_dask.last_report()._summary.ledger))  # type: ignore[union-attr]
    del inputs
    at_once_dask.run([1], None, print_less, progress=False)
    assert len(facts(page)["runs"]) == 20
    gc.collect()
    assert [ref() for ref in refs if ref() is not None] == []


def test_a_repr_is_called_where_the_run_is(page: str, folder: Path) -> None:
    """It is the user's code: on the event loop it would hold up the cluster."""
    threads: set[str] = set()

    class Slow(Evil):
        def __repr__(self) -> str:
            threads.add(threading.current_thread().name)
            return f"slow {self.n}"

    process = waiting(folder, 3, lambda slow: int(slow.n))
    with Going(folder, [Slow(n) for n in range(8)], None, process) as run:
        name = run._thread.name
        poll_for(
            lambda: "slow 3" in [at["input"] for at in seen(page, "workers")],
            "the input has no name",
        )
    assert threads == {name}


def test_it_answers_while_the_iterable_waits(page: str, folder: Path) -> None:
    """The run's thread is in the user's iterator then; what it knows can be seen all the same."""

    def slowly() -> Iterator[Any]:
        yield from [Evil(0), *["a name"] * 7]  # so many are drawn before anything is sent
        wait_in(folder)
        yield "the last"

    def process(inp: Any) -> None:
        if isinstance(inp, Evil):
            raise ValueError(inp.n)
        if inp != "the last":
            wait_in(folder)

    with Going(folder, slowly(), None, process) as run:
        poll_for(
            lambda: [at["input"] for at in seen(page, "workers")][:1] == ["'a name'"],
            "the input is not shown",
            lambda: facts(page),
        )
        told = facts(page)["run"]
        assert told["workers"][0]["index"] == 1
        assert (told["inputs"]["total"], told["inputs"]["left"], told["eta"]) == (None, None, None)
        report = run.release()
    told = facts(page)["run"]
    assert told["inputs"] == counts_of(report)
    assert [cause["index"] for cause in told["causes"]] == [0]
    assert (report.n_inputs, report.n_failed) == (9, 1)


def test_what_is_tried_again_has_not_failed_yet(page: str, folder: Path) -> None:
    def process(n: int) -> None:
        if n == 0:
            raise ValueError("for now")
        if n == 1:
            wait_in(folder)

    with Going(folder, range(8), None, process, retries=1) as run:
        poll_for(
            lambda: [at["input"] for at in seen(page, "workers")][:1] == ["1"],
            "the input is not shown",
        )
        told = facts(page)["run"]
        assert (told["causes"], told["inputs"]["failed"]) == ([], 0)
        assert run.release().n_failed == 1
    assert [cause["count"] for cause in seen(page, "causes")] == [1]


def test_counts_add_up_while_failures_are_recorded(page: str, folder: Path) -> None:
    """To record them takes a repr of the user's, which may take its time."""

    class Named(Evil):
        def __repr__(self) -> str:
            if self.n == 0 and os.getpid() == driver:
                (folder / "named").touch()
                wait_in(folder)
            return str(self.n)

    def process(inp: Any) -> None:
        raise ValueError(inp.n)

    driver = os.getpid()
    with Going(folder, [Named(n) for n in range(8)], None, process) as run:
        # Nobody looks at the page yet, or they would be named for that.
        poll_for((folder / "named").exists, "they are not being recorded")
        for _ in range(3):
            told = facts(page)["run"]
            failed, left = told["inputs"]["failed"], told["inputs"]["left"]
            assert (failed + left, failed < 8) == (8, True)
            assert sum(cause["count"] for cause in told["causes"]) == failed
        assert run.release().n_failed == 8
    assert facts(page)["run"]["inputs"]["failed"] == 8


def test_the_first_hung_input_is_long_before_anything_came_back(page: str, folder: Path) -> None:
    def process(n: int) -> None:
        if n:
            wait_in(folder)

    with Going(folder, range(8), None, process):
        poll_for(
            lambda: 1 in [at["index"] for at in seen(page, "workers") if at["long"]],
            "it is not marked",
            lambda: facts(page)["run"],
        )


def refuses(pid: int, key: int) -> int:
    if os.getpid() == pid:
        raise RuntimeError("not in the driver")
    return key


class Stranger:
    """A value that cannot be unpickled in the process `pid`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return refuses, (self.pid, 1)


def test_a_reduced_value_that_does_not_arrive_is_a_failed_key(page: str) -> None:
    driver = os.getpid()
    result = at_once_dask.run(
        range(10),
        None,
        lambda n: [(n, n)],
        reduce_fn=lambda values: Stranger(driver) if 3 in values else values[0],
        on_error="return",
        progress=False,
    )
    assert (len(result), result.report.n_keys_failed) == (9, 1)
    assert facts(page)["run"]["keys"] == {"total": 10, "reduced": 9, "failed": 1, "left": 0}


LOOKING = """
import json, sys, time, urllib.request
import at_once_dask

client = at_once_dask.start(1, dashboard_address="127.0.0.1:0")
address = client.dashboard_link.replace("/status", "/at-once")
print(urllib.request.urlopen(address + ".json").read().decode())
at_once_dask.run([1, 0], None, lambda n: 1 / n, on_error="return", progress=False)
told = json.load(urllib.request.urlopen(address + ".json"))["run"]
print(told["inputs"]["failed"], "bokeh" in sys.modules)
print(b"reloads itself" in urllib.request.urlopen(address).read())
while b"at-once.json" not in urllib.request.urlopen(address).read():
    time.sleep(0.1)
print("bokeh" in sys.modules)
at_once_dask.close()
"""


@pytest.mark.thorough
def test_the_json_comes_without_bokeh_and_the_page_builds_it(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOKING], capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ['{"runs": [], "run": null}', "1 False", "True", "True"]


CLOSING = """
import threading, urllib.request
import at_once_dask

client = at_once_dask.start(1, dashboard_address="127.0.0.1:0")
print(b"reloads itself" in urllib.request.urlopen(client.dashboard_link).read())
at_once_dask.close()
print([thread.name for thread in threading.enumerate()])
"""


@pytest.mark.thorough
def test_no_thread_is_left_when_the_cluster_is_closed_while_bokeh_is_imported(
    folder: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSING], capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert (done.stdout, done.stderr) == ("True\n['MainThread']\n", "")


@pytest.mark.parametrize("end", ["", "/", "/status"])
def test_the_page_is_beside_the_dashboard_wherever_that_is(page: str, end: str) -> None:
    port = urlsplit(page).port
    with dask.config.set({"distributed.dashboard.link": f"/user/me/proxy/{{port}}{end}"}):
        link = connect.find(None, AtOncePage).dashboard_link
        assert link is not None
        assert beside(link) == f"/user/me/proxy/{port}/at-once"


def test_a_long_name_is_cut(page: str) -> None:
    def process(n: int) -> None:
        """Handles an input."""

    process.__name__ = "p" * 10_000
    at_once_dask.run([1], None, process, progress=False)
    assert len(facts(page)["run"]["name"]) == 200


def test_on_loopback_only(page: str) -> None:
    port = int(page.split(":")[2].split("/")[0])
    listening = [
        connection.laddr.ip
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    assert listening == ["127.0.0.1"]


def test_a_borrowed_cluster_gets_no_page(folder: Path) -> None:
    """Nothing is added to its dashboard, though it is in this very process."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as borrowed:
        with Client(borrowed, set_as_default=False) as client:
            application: Any = borrowed.scheduler.http_application
            before = list(application.applications)
            at_once_dask.run([1], None, print_less, client=client, progress=False)
            assert application.applications == before
            with urllib.request.urlopen(client.dashboard_link) as answer:
                assert b"at-once" not in answer.read()
            for name in ("at-once", "at-once.json"):
                assert refused(urljoin(client.dashboard_link, name))[0] == 404


def test_tasks_have_the_names_of_the_functions(page: str, cluster: Client) -> None:
    """In Dask's own pages, as long as they run."""
    seen: set[str] = set()

    def count_words(n: int) -> list[tuple[int, int]]:
        return [(n, n)]

    def add_up(values: list[int]) -> int:
        return sum(values)

    scheduler: Any = connect._own._cluster.scheduler  # type: ignore[union-attr]
    plugin = Noting(seen)
    scheduler.add_plugin(plugin)
    try:
        at_once_dask.run(range(4), None, count_words, reduce_fn=add_up, progress=False)
    finally:
        scheduler.remove_plugin(plugin.name)
    assert seen == {"count_words", "add_up"}


class Noting:
    """A scheduler plugin: the names under which Dask shows its tasks."""

    name = "noting"

    def __init__(self, seen: set[str]) -> None:
        self._seen = seen

    def transition(self, key: Any, *args: Any, **kwargs: Any) -> None:
        scheduler: Any = connect._own._cluster.scheduler  # type: ignore[union-attr]
        if key in scheduler.tasks:
            self._seen.add(scheduler.tasks[key].prefix.name)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_a_death_with_bystanders(page: str, folder: Path) -> None:
    """Its own failure, and once each those that its process had noted before."""

    def process(n: int) -> None:
        if n == 1:
            wait_in(folder)
            os.kill(os.getpid(), signal.SIGKILL)
        if n % 10 == 0:
            raise ValueError(n)

    with Going(folder, range(40), None, process) as run:
        poll_for(lambda: seen(page, "causes"), "no failure is shown")
        report = run.release()
    told = facts(page)["run"]
    assert told["inputs"] == counts_of(report)
    assert (report.n_processed, report.n_failed, report.n_left) == (35, 5, 0)
    causes = [(cause["kind"], cause["error"], cause["count"]) for cause in told["causes"]]
    assert causes == [("exception", "ValueError", 4), ("crash", "SIGKILL", 1)]


def unplugged() -> Iterator[int]:
    yield from range(3)
    raise OSError("unplugged")


def print_less(inp: object) -> None:
    """Handles an input."""
