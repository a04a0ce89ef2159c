"""Progress: what is shown, where, and that it never wraps, warns, or reaches stdout."""

from __future__ import annotations

import io
import itertools
import re
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import IPython
import IPython.display
import pytest
from clock import Clock
from terminal import Terminal, screen
from tqdm import tqdm

from at_once_dask.driver.flights import InFlight
from at_once_dask.driver.inputs import Chunk
from at_once_dask.live import console
from at_once_dask.live.console import show_links
from at_once_dask.live.progress_bar import ProgressBar
from at_once_dask.protocol.events import Running
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.status import FAILED, PENDING, PROCESSED, SKIPPED
from at_once_dask.report.ledger import Ledger


@pytest.fixture(autouse=True)
def _no_links_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_links_told", set())


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with Terminal() as terminal:
        yield terminal


def put(ledger: Ledger, skipped: int = 0, processed: int = 0, failed: int = 0) -> None:
    ledger.counts[SKIPPED] += skipped
    ledger.counts[PROCESSED] += processed
    ledger.counts[FAILED] += failed


def shown_eta(line: str) -> int:
    """Seconds."""
    found = re.search(r"ETA (?:(\d+) s|(?:(\d+):)?(\d+):(\d+))", line)
    assert found is not None, line
    seconds, *clock_face = (int(group or 0) for group in found.groups())
    hours, minutes, rest = clock_face
    return seconds + hours * 3600 + minutes * 60 + rest


# --- the ETA


@pytest.mark.parametrize("skipping", [0.01, 0.5, 20.0])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_instant_skips_do_not_fool_the_eta(
    terminal: Terminal, skipping: float, workers: int
) -> None:
    """After 10,000 of them and 10 of 100 equal inputs it is within 30 %."""
    for seconds, apart in itertools.product((1.0, 7.0, 600.0), (0.0, 0.01)):
        clock, ledger = Clock(0.0), Ledger()
        with ProgressBar(ledger, 10_100, "map", stream=terminal, clock=clock) as bar:
            for part in range(1, 11):
                clock.now = skipping * part / 10
                put(ledger, skipped=1000)
                bar.tick()
            for done in range(10):
                batch, worker = divmod(done, workers)
                clock.now = skipping + seconds * (batch + 1) + apart * worker
                put(ledger, processed=1)
                bar.tick()
            truth = pytest.approx(90 / workers * seconds, rel=0.3)
            assert shown_eta(bar.line()) == truth, (seconds, apart)


def test_the_eta_follows_a_change_of_speed(clock: Clock) -> None:
    """Half of the list at 100 a second, then 1 a second."""
    ledger = Ledger()
    bar = ProgressBar(ledger, 2000, "map", stream=io.StringIO(), clock=clock)
    for _ in range(1000):
        clock.now += 0.01
        put(ledger, processed=1)
        bar.tick()
    for _ in range(100):
        clock.now += 1
        put(ledger, processed=1)
        bar.tick()
    assert shown_eta(bar.line()) == pytest.approx(900, rel=0.3)


def test_skips_among_the_others_count_as_they_come(clock: Clock) -> None:
    ledger = Ledger()
    bar = ProgressBar(ledger, 10_000, "map", stream=io.StringIO(), clock=clock)
    for _ in range(1000):
        clock.now += 1
        put(ledger, skipped=4, processed=1)
        bar.tick()
    assert shown_eta(bar.line()) == pytest.approx(1000, rel=0.1)


def test_the_eta_of_a_straggler_is_no_less_than_it_has_lasted(clock: Clock) -> None:
    ledger = Ledger()
    bar = ProgressBar(ledger, 100, "map", stream=io.StringIO(), clock=clock)
    for _ in range(99):
        clock.now += 0.1
        put(ledger, processed=1)
        bar.tick()
    assert shown_eta(bar.line()) == 0
    clock.now += 3600
    bar.tick()
    assert shown_eta(bar.line()) == 3600


def test_nobody_knows_before_anything_was_done(clock: Clock) -> None:
    bar = ProgressBar(Ledger(), 100, "map", stream=io.StringIO(), clock=clock)
    clock.now = 5
    bar.tick()
    assert bar.line() == "0 processed, 0 skipped, 0 failed, 100 left, ETA ?"


def test_no_time_at_all_is_no_error(clock: Clock) -> None:
    ledger = Ledger()
    bar = ProgressBar(ledger, 100, "map", stream=io.StringIO(), clock=clock)
    put(ledger, skipped=10)
    bar.tick()
    assert bar.line() == "0 processed, 10 skipped, 0 failed, 90 left, ETA ?"


def test_millions_of_events_take_no_room(clock: Clock) -> None:
    ledger = Ledger()
    bar = ProgressBar(ledger, 200_000, "map", stream=io.StringIO(), clock=clock)
    for _ in range(100_000):
        clock.now += 0.5
        put(ledger, processed=1)
        bar.tick()
    assert len(bar._eta._events) <= 1000
    assert shown_eta(bar.line()) == pytest.approx(50_000, rel=0.01)


# --- on a terminal


def test_the_bar(terminal: Terminal, clock: Clock) -> None:
    ledger = Ledger()
    with ProgressBar(ledger, 20, "map", stream=terminal, clock=clock) as bar:
        clock.now = 10
        put(ledger, skipped=3, processed=5, failed=2)
        bar.tick()
        clock.now = 20
        put(ledger, processed=10)
        bar.tick()
    first, half, *whole = terminal.frames
    assert (
        first == "map: 0 processed, 0 skipped, 0 failed, 20 left, ETA ?   0%|                   |"
    )
    assert half == "map: 5 processed, 3 skipped, 2 failed, 10 left, ETA 10 s, 1.0/s  50%|████▌    |"
    last = "map: 15 processed, 3 skipped, 2 failed, 0 left, in 20 s, 1.0/s 100%|██████████|"
    assert set(whole) == {last}
    assert {len(frame) for frame in terminal.frames} == {79}
    assert terminal.getvalue().endswith("\n")
    assert terminal.getvalue().count("\n") == 1


def test_it_is_drawn_a_few_times_a_second(terminal: Terminal, clock: Clock) -> None:
    ledger = Ledger()
    with ProgressBar(ledger, 10_000, "map", stream=terminal, clock=clock) as bar:
        before = len(terminal.frames)
        for _ in range(1000):
            clock.now += 0.01
            put(ledger, processed=1)
            bar.tick()
        assert 30 < len(terminal.frames) - before <= 50


NAMES = ("'page.html'", "'/data/in/a/long/way/" + "漢字" * 50 + ".html'")


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_it_never_wraps(terminal: Terminal, columns: int) -> None:
    terminal.resize(columns)
    for total, name in itertools.product((None, 100, 10_000_000), NAMES):
        clock, ledger = Clock(0.0), Ledger()
        with ProgressBar(ledger, total, "reduce", stream=terminal, clock=clock) as bar:
            for _ in range(10):
                clock.now += 100
                put(ledger, *[(total or 1000) // 50] * 3)
                bar.running(Running("tcp://1", 90.0, "process", name))
                bar.tick()
            put(ledger, processed=10**9)  # more than there were to be
            clock.now += 1
            bar.tick()
    assert len(terminal.frames) > 6 * 10
    for frame in terminal.frames:
        assert width(frame) < columns
        assert re.match(r"reduce: [\d,]+", frame)


def width(text: str) -> int:
    return sum(2 if "一" <= char <= "龥" else 1 for char in text)


def test_a_shorter_line_covers_a_longer_one(terminal: Terminal, clock: Clock) -> None:
    ledger = Ledger()
    with ProgressBar(ledger, None, "map", stream=terminal, clock=clock) as bar:
        for worker in "12":
            clock.now += 10
            bar.running(Running(worker, 10.0, "process", "'a long name of an input'"))
            put(ledger, processed=1)
            bar.tick()
    assert screen(terminal.getvalue(), 80) == [
        "map: 2 processed, 0 skipped, 0 failed, in 20 s, 6.0/min"
    ]


def test_the_size_of_the_terminal_may_change(terminal: Terminal, clock: Clock) -> None:
    ledger = Ledger()
    with ProgressBar(ledger, 10, "map", stream=terminal, clock=clock) as bar:
        clock.now += 1
        put(ledger, processed=1)
        bar.tick()
        terminal.resize(100)
        clock.now += 1
        put(ledger, processed=1)
        bar.tick()
    for frame, columns in zip(terminal.frames[1:3], (80, 100), strict=True):
        assert re.fullmatch(r"map: \d processed, .*/s  \d0%\|█+.? +\|", frame)
        assert len(frame) == columns - 1


def test_how_many_there_are_may_be_unknown(terminal: Terminal, clock: Clock) -> None:
    ledger = Ledger()
    with ProgressBar(ledger, None, "map", stream=terminal, clock=clock) as bar:
        clock.now = 75
        put(ledger, processed=150)
        bar.tick()
    assert terminal.frames[-1] == "map: 150 processed, 0 skipped, 0 failed, in 1:15, 2.0/s"


def test_a_plan_counts_what_is_pending(clock: Clock) -> None:
    ledger = Ledger()
    ledger.counts[PENDING] = 7
    ledger.counts[SKIPPED] = 3
    bar = ProgressBar(ledger, 20, "check", stream=io.StringIO(), clock=clock)
    clock.now = 1
    bar.tick()
    assert bar.line() == "7 pending, 3 skipped, 0 failed, 10 left, ETA 1 s, 10.0/s"


def test_an_exception_ends_the_line(terminal: Terminal, clock: Clock) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        ProgressBar(Ledger(), 5, "map", stream=terminal, clock=clock),
    ):
        raise KeyboardInterrupt
    assert terminal.getvalue().endswith("\n")


def test_an_interrupted_drawing_leaves_tqdm_free(clock: Clock) -> None:
    class Interrupted(Terminal):
        def write(self, text: str) -> int:
            if "1 processed" in text:
                raise KeyboardInterrupt
            return super().write(text)

    ledger = Ledger()
    with Interrupted() as stream, ProgressBar(ledger, 5, "map", stream=stream, clock=clock) as bar:
        clock.now = 1
        put(ledger, processed=1)
        with pytest.raises(KeyboardInterrupt):
            bar.tick()
        put(ledger, processed=1)
    assert stream.closed
    check_that_tqdm_is_free()


def test_no_thread_watches_the_bar(terminal: Terminal, clock: Clock) -> None:
    before = threading.enumerate()
    with ProgressBar(Ledger(), 5, "map", stream=terminal, clock=clock):
        assert threading.enumerate() == before


# --- the slowest


def test_the_slowest_input_is_named(clock: Clock) -> None:
    ledger = Ledger()
    bar = ProgressBar(ledger, 10, "map", stream=io.StringIO(), clock=clock)
    put(ledger, processed=2)
    clock.now = 100
    bar.running(Running("tcp://1", 4.0, "process", "'quicker'"))
    bar.running(Running("tcp://2", 64.0, "check", "'slow'"))
    bar.tick()
    assert bar.line().endswith(", slowest: 'slow' in check for 1:04, 1.2/min")
    clock.now = 102
    assert "slowest: 'slow' in check for 1:06" in bar.line()
    bar.running(Running("tcp://1", 2.5, "process", "'another'"))
    clock.now = 104  # the second worker has told nothing for long: it is done with it
    assert "slowest: 'another' in process for 4 s" in bar.line()
    clock.now = 106
    assert "slowest" not in bar.line()


def test_at_the_end_nothing_is_the_slowest(clock: Clock) -> None:
    stream, ledger = io.StringIO(), Ledger()
    with ProgressBar(ledger, 2, "map", stream=stream, clock=clock) as bar:
        clock.now = 10
        bar.running(Running("tcp://1", 4.0, "process", "'slow'"))
        put(ledger, processed=2)
        bar.tick()
    assert stream.getvalue().splitlines() == 2 * [
        "map: 2 processed, 0 skipped, 0 failed, 0 left, in 10 s, 12.0/min"
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("'" + "x" * 100 + "/page_17.html'", "…" + "x" * 25 + "/page_17.html'"),
        ("array([1,\n       2])", "array([1, 2])"),
        ("\x1b[31mred\r\n\x1b[0m\b", "[31mred [0m"),
    ],
)
def test_a_name_is_one_short_line(clock: Clock, name: str, expected: str) -> None:
    bar = ProgressBar(Ledger(), 10, "map", stream=io.StringIO(), clock=clock)
    bar.running(Running("tcp://1", 4.0, "process", name))
    assert f"slowest: {expected} in process for 4 s" in bar.line()


COUNTS = "map: 5 processed, 0 skipped, 0 failed, 95 left, ETA 3:10"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (70, f"{COUNTS}, 30.0/min"),
        (80, f"{COUNTS}, slowest: …ge_17.html'"),
        (100, f"{COUNTS}, slowest: …age_17.html' in process for 4 s"),
    ],
)
def test_a_narrow_terminal_has_room_for_the_end_of_the_name(
    terminal: Terminal,
    clock: Clock,
    columns: int,
    expected: str,
) -> None:
    terminal.resize(columns)
    ledger = Ledger()
    with ProgressBar(ledger, 100, "map", stream=terminal, clock=clock) as bar:
        clock.now = 10
        put(ledger, processed=5)
        bar.running(Running("tcp://1", 4.0, "process", "'/data/in/a/long/way/page_17.html'"))
        bar.tick()
        assert terminal.frames[-1] == expected


@pytest.mark.parametrize(
    ("columns", "total", "expected"),
    [
        (40, 300, "map: 203/300, 3 failed, ETA 10 s"),
        (40, None, "map: 203 done, 3 failed, in 20 s"),
        (60, 300, "map: 200 processed, 0 skipped, 3 failed, 97 left, ETA 10 s"),
    ],
)
def test_a_narrow_terminal_has_what_matters_most(
    terminal: Terminal, clock: Clock, columns: int, total: int | None, expected: str
) -> None:
    terminal.resize(columns)
    ledger = Ledger()
    with ProgressBar(ledger, total, "map", stream=terminal, clock=clock) as bar:
        clock.now = 20
        put(ledger, processed=200, failed=3)
        bar.tick()
        assert terminal.frames[-1] == expected


class Held:
    """Partitions that the workers hold."""

    def __init__(self, n: int, waits: float = 0.0) -> None:
        self._n = n
        self.waits = waits

    def workers(self) -> list[str]:
        return []

    def in_flight(self) -> list[InFlight]:
        chunks = [Chunk(position, [position]) for position in range(self._n)]
        return [
            InFlight(str(chunk.start), chunk, "tcp://1", "", 0.0, chunk.stop) for chunk in chunks
        ]

    def progress_folder(self, worker: str) -> None:
        return None


@pytest.mark.parametrize("total", [100, None])
def test_for_how_long_it_waits_for_a_worker(clock: Clock, total: int | None) -> None:
    bar = ProgressBar(Ledger(), total, "map", stream=io.StringIO(), clock=clock)
    bar.begin(Held(0, waits=75.0))
    assert ", waiting for a worker for 1:15" in bar.line()


def test_what_only_waits_promises_no_end(clock: Clock) -> None:
    ledger = Ledger()
    ledger.draw(3)
    bar = ProgressBar(ledger, 100, "map", stream=io.StringIO(), clock=clock)
    bar.begin(Held(2))
    for _ in range(97):
        clock.now += 0.1
        put(ledger, processed=1)
        bar.tick()
    clock.now += 60
    counts = "97 processed, 0 skipped, 0 failed, 3 left"
    assert bar.line() == f"{counts}, ETA 1:00, 10.0/s"  # one is not begun
    bar.begin(Held(3))
    assert bar.line() == f"{counts}, waiting for 3 inputs"
    put(ledger, processed=2)
    bar.tick()
    assert "1 left, ETA " in bar.line()
    clock.now += 300
    bar.running(Running("tcp://1", 60.0, "process", "'hangs'"))
    assert bar.line() == (
        "99 processed, 0 skipped, 0 failed, 1 left, waiting for 1 input,"
        " slowest: 'hangs' in process for 1:00"
    )


# --- where there is no terminal


def test_a_plain_line_every_ten_seconds(clock: Clock) -> None:
    stream, ledger = io.StringIO(), Ledger()
    with ProgressBar(ledger, 1000, "map", stream=stream, clock=clock) as bar:
        for _ in range(4 * 35):  # 35 seconds
            clock.now += 0.25
            put(ledger, processed=1)
            bar.tick()
    assert stream.getvalue().splitlines() == [
        "map: 40 processed, 0 skipped, 0 failed, 960 left, ETA 4:00, 4.0/s",
        "map: 80 processed, 0 skipped, 0 failed, 920 left, ETA 3:50, 4.0/s",
        "map: 120 processed, 0 skipped, 0 failed, 880 left, ETA 3:40, 4.0/s",
        "map: 140 processed, 0 skipped, 0 failed, 860 left, in 35 s, 4.0/s",  # at the end
    ]


class Broken(io.StringIO):
    """As a pipe that nobody reads any more."""

    def __init__(self, terminal: bool, error: Exception) -> None:
        super().__init__()
        self._terminal = terminal
        self._error = error

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        raise self._error


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize(
    "stream",
    [
        lambda: Broken(terminal=True, error=BrokenPipeError(32, "Broken pipe")),
        lambda: Broken(terminal=False, error=BrokenPipeError(32, "Broken pipe")),
        lambda: Broken(terminal=True, error=OSError(5, "Input/output error")),
        lambda: Broken(terminal=False, error=OSError(28, "No space left on device")),
        closed,
        lambda: None,
    ],
    ids=["pipe bar", "pipe", "terminal gone", "disk full", "closed", "none"],
)
def test_a_run_does_not_care_who_listens(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    stream: Callable[[], Any],
) -> None:
    monkeypatch.setattr(sys, "stderr", stream())
    show_links({"Dask dashboard": "http://127.0.0.1:8787/status"})
    ledger = Ledger()
    with ProgressBar(ledger, 10, "map", clock=clock) as bar:
        for _ in range(10):
            clock.now += 11
            put(ledger, processed=1)
            bar.tick()
    assert capfd.readouterr() == ("", "")
    check_that_tqdm_is_free()


def check_that_tqdm_is_free() -> None:
    """A bar that is collected by another thread, the event loop's, waits for tqdm's lock."""

    def draw() -> None:
        with tqdm.get_lock():  # type: ignore[no-untyped-call]
            pass

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


# --- notebooks


class Shown:
    """What a notebook was told to display, each with what it became."""

    def __init__(self) -> None:
        self.became: list[list[dict[str, str]]] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw
        assert display_id
        became = [data]
        self.became.append(became)
        return SimpleNamespace(update=lambda data, raw: became.append(data))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = Shown()
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(IPython.display, "display", shown.display)
    return shown


LINKS = {"Dask dashboard": "http://127.0.0.1:8787/status", "This run": '/proxy/8787/"><b>'}


def test_a_notebook_has_one_display_whose_last_line_stays(
    notebook: Shown, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger()
    show_links(LINKS)
    with ProgressBar(ledger, 4, "map", links=LINKS, clock=clock) as bar:
        for _ in range(8):
            clock.now += 0.125
            bar.tick()
        put(ledger, processed=2, failed=1)
        clock.now += 1
        bar.tick()
        put(ledger, processed=1)

    ((first, *_, while_it_runs, last),) = notebook.became
    assert first["text/plain"] == "map: 0 processed, 0 skipped, 0 failed, 4 left, ETA ?"
    assert len(notebook.became[0]) == 5  # every half second, and at the end
    drawn, below = while_it_runs["text/html"].split("<br>")
    assert re.match('<progress value="3" max="4" style="accent-color: #d1443c; ', drawn)
    assert '<b style="color: #d1443c">1 failed</b>, 1 left, ETA ' in drawn
    assert f'<a href="{LINKS["Dask dashboard"]}" target="_blank"' in below
    assert 'href="/proxy/8787/&#34;&gt;&lt;b&gt;"' in below
    told = "map: 3 processed, 0 skipped, 1 failed, 0 left, in 2.0 s, 1.5/s"
    assert last["text/plain"] == told
    assert "<a " not in last["text/html"]
    assert capfd.readouterr() == ("", "")


def test_a_link_that_is_none_is_text(notebook: Shown, clock: Clock) -> None:
    """They come from Dask's configuration, and from the environment that it names."""
    with ProgressBar(Ledger(), 4, "map", links={"<b>": "javascript:alert()"}, clock=clock):
        assert notebook.became[0][0]["text/html"].endswith("<br>&lt;b&gt;")


def test_first_failures_are_lines_of_the_display(notebook: Shown, clock: Clock) -> None:
    ledger = Ledger()
    with ProgressBar(ledger, 4, "map", clock=clock) as bar:
        fail(ledger, "<b>", 1)
        clock.now += 1
        bar.tick()
    ((_, while_it_runs, last),) = notebook.became
    assert "<br>first failure: &lt;b&gt; in process at" in while_it_runs["text/html"]
    assert "first failure" not in last["text/html"]


# --- what is told once


def fail(ledger: Ledger, error: str, n: int) -> None:
    """`n` more inputs fail."""
    for _ in range(n):
        position = len(ledger.states)
        ledger.draw(position + 1)
        failure = Failure(position, "process", "exception", error, "no\x1b[31m!", "", "x.py:3")
        ledger.refuse(failure, position)


def test_each_new_cause_is_told_once(terminal: Terminal, clock: Clock) -> None:
    ledger = Ledger()
    with ProgressBar(ledger, 2000, "map", stream=terminal, clock=clock) as bar:
        for error in "AABACDEFG":
            fail(ledger, error, 1)
            clock.now += 1
            bar.tick()
    told = [line for line in screen(terminal.getvalue(), 80) if "failure" in line]
    assert told == [
        "first failure: A in process at x.py:3, input 0: no[31m!",
        "new failure: B in process at x.py:3, input 2: no[31m!",
        "new failure: C in process at x.py:3, input 4: no[31m!",
        "new failure: D in process at x.py:3, input 5: no[31m!",
        "new failure: E in process at x.py:3, input 6: no[31m!",
    ]
    assert screen(terminal.getvalue(), 80)[-1].startswith("map: 0 processed, 0 skipped, 9 failed")


def test_a_cause_that_comes_last_is_told_as_well(clock: Clock) -> None:
    stream, ledger = io.StringIO(), Ledger()
    with ProgressBar(ledger, 1, "map", stream=stream, clock=clock):
        fail(ledger, "A", 1)
    assert stream.getvalue().splitlines() == [
        "first failure: A in process at x.py:3, input 0: no[31m!",
        "map: 0 processed, 0 skipped, 1 failed, 0 left, in 0.0 s",
    ]


def test_the_reduction_goes_on_with_the_causes_of_the_run(clock: Clock) -> None:
    stream, ledger, keys = io.StringIO(), Ledger(), Ledger()
    fail(ledger, "A", 1)
    with ProgressBar(keys, 60, "reduce", causes=ledger, stream=stream, clock=clock) as bar:
        fail(ledger, "B", 60)
        put(keys, failed=60)
        bar.tick()
    told, *_ = lines = stream.getvalue().splitlines()
    assert told == "new failure: B in process at x.py:3, input 1: no[31m!"
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("n", "errors", "processed", "skipped", "is_told"),
    [
        (49, "A", 0, 0, False),
        (50, "A", 0, 0, True),
        (50, "A", 0, 10, True),
        (50, "A", 1, 0, False),
        (25, "AB", 0, 0, False),
    ],
)
def test_when_nothing_works_it_says_so(
    clock: Clock, n: int, errors: str, processed: int, skipped: int, is_told: bool
) -> None:
    stream, ledger = io.StringIO(), Ledger()
    with ProgressBar(ledger, 2000, "map", stream=stream, clock=clock) as bar:
        put(ledger, processed=processed, skipped=skipped)
        for error in errors:
            fail(ledger, error, n)
        for _ in range(3):
            clock.now += 1
            bar.tick()
    loud = [line for line in stream.getvalue().splitlines() if line.startswith("ALL")]
    expected = (
        "ALL 50 INPUTS SO FAR HAVE FAILED, for this one cause. Ctrl-C ends the run, and the same"
        " call goes on when it is fixed; max_failures=50 would end it by itself."
    )
    assert loud == [expected] * is_told
