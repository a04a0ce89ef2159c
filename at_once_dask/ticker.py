"""Progress: what was processed, skipped, failed, what is left and how long that takes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from at_once_dask.crew import Running
from at_once_dask.ledger import Ledger
from at_once_dask.rates import Eta
from at_once_dask.report import Report
from at_once_dask.session import in_notebook
from at_once_dask.sight import Flights, failing
from at_once_dask.states import FAILED, PENDING, PROCESSED, SKIPPED

LINE_SECONDS = 10.0  # between two lines where there is no terminal
REDRAW_SECONDS = 0.2
FORGET_SECONDS = 3.0  # a worker that has told nothing for so long is no longer at it
NAME_LENGTH = 40  # of an input in the progress, at most
NAME_LEAST = 12  # and where the terminal is narrow
BAR_LEAST = 12  # columns of percentage and bar, or neither is shown


class Ticker:
    """Shows the progress of one pass over a ledger; a context manager.

    Parameters
    ----------
    ledger
        What is shown.
    total : int or None
        How many inputs there are, where that is known.
    what : str
        The first word of the line.
    stream : text stream
        Where it goes; a bar on a terminal or in a notebook, else a plain line now and then, and
        one at the end.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        total: int | None,
        what: str,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._total = total
        self._what = what
        self._stream = _Stream(stream)
        self._clock = clock
        self._begun = self._shown = clock()
        self._eta = Eta(self._begun)
        self._long: dict[str, tuple[float, Running]] = {}
        self._flights: Flights | None = None
        self._bar: Any = None

    def __enter__(self) -> Ticker:
        if in_notebook() or self._stream.isatty():
            self._bar = _bar(self._total, self._stream)
            self._show()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._long.clear()
        self._flights = None
        self._show()
        if self._bar is not None:
            self._bar.close()

    def running(self, event: Running) -> None:
        self._long[event.worker] = (self._clock(), event)

    def begin(self, flights: Flights) -> None:
        """What is in flight, from now on."""
        self._flights = flights

    def tick(self) -> None:
        now = self._clock()
        self._eta.note(now, self._ledger.n_handled, self._ledger.n_worked)
        if now - self._shown >= (LINE_SECONDS if self._bar is None else REDRAW_SECONDS):
            self._shown = now
            self._show()

    def line(self, width: int = sys.maxsize) -> str:
        """Counts and ETA; then, where they fit into `width`, what runs longest, and the speed."""
        text = ", ".join([*self._counts(), self._time()])
        text += self._slowest(width - len(text))
        rate = self._eta.rate()
        more = "" if rate is None else f", {speed(rate)}"
        return text + more if len(text + more) <= width else text

    def _counts(self) -> list[str]:
        counts = self._ledger.counts
        state, name = (PENDING, "pending") if counts[PENDING] else (PROCESSED, "processed")
        parts = [
            f"{counts[state]:,} {name}",
            f"{counts[SKIPPED]:,} skipped",
            f"{counts[FAILED] + failing(self._flights, self._ledger):,} failed",
        ]
        left = self._left()
        return parts if left is None else [*parts, f"{left:,} left"]

    def _time(self) -> str:
        """How long it takes; how long it took, when nothing is left or nobody knows how much."""
        now, left = self._clock(), self._left()
        if not left:
            return f"in {duration(now - self._begun)}"
        seconds = self._eta.seconds(left, now)
        return "ETA ?" if seconds is None else f"ETA {duration(seconds)}"

    def _left(self) -> int | None:
        if self._total is None:
            return None
        return max(0, self._total - self._ledger.n_handled - failing(self._flights, self._ledger))

    def _slowest(self, room: int) -> str:
        """What has run longest, of what was told a short time ago."""
        now = self._clock()
        self._long = {w: told for w, told in self._long.items() if now - told[0] < FORGET_SECONDS}
        if not self._long or self._left() == 0:
            return ""
        at, event = max(self._long.values(), key=lambda told: told[1].seconds - told[0])
        rest = f" in {event.stage} for {duration(event.seconds + now - at)}"
        room -= len(", slowest: ")
        if room < NAME_LEAST + len(rest):
            rest = ""
        name = _name(event.inp, min(NAME_LENGTH, room - len(rest)))
        return f", slowest: {name}{rest}" if room >= NAME_LEAST else ""

    def _show(self) -> None:
        if self._bar is None:
            print(f"{self._what}: {self.line()}", file=self._stream, flush=True)
            return
        width = None if in_notebook() else self._stream.columns()
        prefix = f"{self._what}: "
        text = prefix + (self.line() if width is None else self.line(width - len(prefix)))
        with self._bar.get_lock():  # given back when Ctrl-C comes, as `refresh` would not
            self._bar.n = self._ledger.n_handled
            self._bar.ncols = width
            self._bar.set_description_str(text, refresh=False)
            self._bar.bar_format = _bar_format(self._total, text, width)
            self._bar.refresh(nolock=True)


class _Stream:
    """Where the progress goes, stderr by default.

    It never raises: when the terminal is closed, or a pipe has no reader any more, the run goes on.
    And tqdm would keep its lock then, for which a thread of Dask's would wait for ever.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: Any = sys.stderr if stream is None else stream  # that may be None as well
        self.encoding = getattr(self._stream, "encoding", None)

    def write(self, text: str) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            return bool(self._stream.isatty())
        return False

    def columns(self) -> int:
        """How many a line has, but the last one, where the cursor stands."""
        columns = 0
        with contextlib.suppress(AttributeError, OSError, ValueError):
            columns = os.get_terminal_size(self._stream.fileno()).columns
        return (columns or 80) - 1


class Silent:
    """No progress."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def begin(self, flights: Flights) -> None:
        pass

    def tick(self) -> None:
        pass

    def running(self, event: Running) -> None:
        pass


def show_link(link: str, stream: TextIO | None = None, *, page: str | None = None) -> None:
    """The dashboard's address at the start of a run, and its page's: to click on, in a notebook.

    Each ends a line: so terminals know where it ends.
    """
    links = {"Dask dashboard": link} | ({} if page is None else {"This run": page})
    text = "\n".join(f"{name}: {link}" for name, link in links.items())
    if in_notebook():
        from IPython.display import display

        from at_once_dask import html

        lines = [f"{name}: {html.linked(link, link)}" for name, link in links.items()]
        display({"text/plain": text, "text/html": "<br>".join(lines)}, raw=True)
    else:
        print(text, file=_Stream(stream), flush=True)


def say(text: str) -> None:
    """On stderr; it must not break anything."""
    print(text, file=_Stream(None), flush=True)


def warn(text: str) -> None:
    """Say something on stderr that must not be lost."""
    say(f"at_once_dask: {text}")


def let_inspect(report: Report, page: str | None = None) -> None:
    """Wait for Enter or Ctrl-C, so that somebody can look at the dashboard; needs a terminal."""
    stdin, stderr = sys.stdin, _Stream(None)
    if stdin is None or not stdin.isatty() or not stderr.isatty():
        return
    print(report.summary(), file=stderr)
    links = " or ".join(filter(None, (page, report.dashboard_link)))
    print(f"Inspect: {links}\nEnter or Ctrl-C goes on.", file=stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        stdin.readline()


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(3.2), duration(75), duration(3_700)
    ('3 s', '1:15', '1:01:40')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def speed(rate: float) -> str:
    """Inputs a second for people, or a minute, or an hour.

    >>> speed(12_345.6), speed(1.5), speed(0.1), speed(0.01)
    ('12,346/s', '1.5/s', '6.0/min', '36.0/h')
    """
    unit, seconds = next((u for u in (("s", 1), ("min", 60)) if rate * u[1] >= 1), ("h", 3600))
    number = rate * seconds
    return f"{number:,.{0 if number >= 100 else 1}f}/{unit}"


def _name(inp: str, limit: int) -> str:
    """An input's repr on one line; its end tells more than its beginning."""
    name = "".join(char for char in " ".join(inp.split()) if char.isprintable())
    return name if len(name) <= limit else "…" + name[1 - limit :]


def _bar(total: int | None, stream: _Stream) -> Any:
    """A tqdm bar, not drawn yet; the widget in notebooks, where ipywidgets is there to show it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns where ipywidgets is missing: text does too
        if widget := in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
            from tqdm.auto import tqdm as bar
        else:
            from tqdm.std import tqdm as bar  # type: ignore[assignment]
    quiet = type("Bar", (bar,), {"monitor_interval": 0})  # no thread that would outlive the run
    made = quiet(total=total, file=stream, bar_format="{desc}", delay=1e-9)
    if not widget:
        made.delay = 0  # or it would not end its line
    return made


def _bar_format(total: int | None, text: str, width: int | None) -> str:
    """The text, and behind it a bar where there is room; in a notebook the bar comes first."""
    if total is not None and width is None:
        return "{percentage:3.0f}%|{bar}| {desc}"
    if total is None or width is None or width - len(text) < BAR_LEAST:
        return "{desc}{bar:0}"  # it is the bar that makes older tqdm cut the text at the width
    return "{desc} {percentage:3.0f}%|{bar}|"
