"""Where progress is drawn: a bar on a terminal, a display in a notebook, lines elsewhere."""

from __future__ import annotations

import contextlib
import html
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from at_once_dask.report.html import linked
from at_once_dask.report.report import Report
from at_once_dask.user_code.notebook import in_notebook

LINE_SECONDS = 10.0  # between two lines where there is no terminal
REDRAW_SECONDS = 0.2
UPDATE_SECONDS = 0.5  # in a notebook, where each is a message to the browser
BAR_LEAST = 12  # columns of percentage and bar, or neither is shown

_BLUE, _RED = "#3f74a8", "#d1443c"  # to be read on white and on black


@dataclass(frozen=True)
class View:
    """The things to draw: `line` says them in so many columns; `n` inputs of `total` are done."""

    line: Callable[[int], str]
    n: int
    total: int | None
    n_failed: int


class Screen(Protocol):
    """Where the progress of one pass is drawn."""

    seconds: float  # from one drawing to the next

    def begin(self, view: View) -> None: ...
    def draw(self, view: View) -> None: ...
    def say(self, text: str) -> None:
        """Say something once that is no progress."""

    def end(self, view: View) -> None: ...


def screen(stream: TextIO | None, total: int | None, links: Mapping[str, str]) -> Screen:
    """The one for this process, which is a notebook's, or where `stream` leads.

    Parameters
    ----------
    links
        Where to look while the run goes on, by name: a notebook has them beside the progress.
    """
    safe = Stream(stream)
    if in_notebook():
        return Cell(links)
    return Bar(total, safe) if safe.isatty() else Lines(safe)


class Lines:
    """A line now and then, and one at the end."""

    seconds = LINE_SECONDS

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def begin(self, view: View) -> None:
        """Nothing to tell yet."""

    def draw(self, view: View) -> None:
        self.say(view.line(sys.maxsize))

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def end(self, view: View) -> None:
        self.draw(view)


class Bar:
    """A line that is drawn anew, with a bar where there is room; what is said goes above it."""

    seconds = REDRAW_SECONDS

    def __init__(self, total: int | None, stream: Stream) -> None:
        from tqdm.std import tqdm

        self._stream = stream
        quiet = type("Quiet", (tqdm,), {"monitor_interval": 0})  # no thread to outlive the run
        self._bar: Any = quiet(total=total, file=stream, bar_format="{desc}", delay=1e-9)
        self._bar.delay = 0  # or it would not end its line

    def begin(self, view: View) -> None:
        self.draw(view)

    def draw(self, view: View) -> None:
        width = self._stream.columns()
        text = view.line(width)
        with self._bar.get_lock():  # given back when Ctrl-C comes, as `refresh` would not
            self._bar.n = view.n
            self._bar.ncols = width
            self._bar.set_description_str(text, refresh=False)
            self._bar.bar_format = _bar_format(view.total, text, width)
            self._bar.refresh(nolock=True)

    def say(self, text: str) -> None:
        with self._bar.get_lock():
            self._bar.clear(nolock=True)
            print(text, file=self._stream, flush=True)
            self._bar.refresh(nolock=True)

    def end(self, view: View) -> None:
        self.draw(view)
        self._bar.close()


class Cell:
    """One output of a notebook's cell; when it is over only its last line is left."""

    seconds = UPDATE_SECONDS

    def __init__(self, links: Mapping[str, str]) -> None:
        self._links = " &middot; ".join(str(linked(name, to)) for name, to in links.items())
        self._said: list[str] = []
        self._handle: Any = None

    def begin(self, view: View) -> None:
        self.draw(view)

    def draw(self, view: View) -> None:
        self._show(view, [*map(html.escape, self._said), *filter(None, [self._links])])

    def say(self, text: str) -> None:
        self._said.append(text)

    def end(self, view: View) -> None:
        self._show(view, [])

    def _show(self, view: View, below: list[str]) -> None:
        line = view.line(sys.maxsize)
        data = {"text/plain": line, "text/html": _as_html(line, view, below)}
        with contextlib.suppress(Exception):  # whoever looks on, the run goes on
            if self._handle is None:
                from IPython.display import display

                self._handle = display(data, raw=True, display_id=True)
            else:
                self._handle.update(data, raw=True)


class Stream:
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


def _bar_format(total: int | None, text: str, width: int) -> str:
    """The text, and behind it a bar where there is room."""
    if total is None or width - len(text) < BAR_LEAST:
        return "{desc}{bar:0}"  # it is the bar that makes older tqdm cut the text at the width
    return "{desc} {percentage:3.0f}%|{bar}|"


def _as_html(line: str, view: View, below: list[str]) -> str:
    """The bar and the line, red where inputs failed; without styles it still says so."""
    shown, colour = html.escape(line), _RED if view.n_failed else _BLUE
    if view.n_failed:
        failed = f"{view.n_failed:,} failed"
        shown = shown.replace(failed, f'<b style="color: {_RED}">{failed}</b>', 1)
    share = "" if view.total is None else f' value="{view.n}" max="{max(view.total, 1)}"'
    bar = f'<progress{share} style="accent-color: {colour}; vertical-align: middle"></progress>'
    return "<br>".join([f"{bar if share else ''} {shown}".lstrip(), *below])


_links_told: set[str] = set()


def show_links(links: Mapping[str, str]) -> None:
    """Where to look on, by name: said once, for the next run on the same cluster has the same.

    Each ends a line: so terminals know where it ends. A notebook has them beside the progress.
    """
    text = "\n".join(f"{name}: {link}" for name, link in links.items())
    if links and not in_notebook() and text not in _links_told:
        _links_told.add(text)
        say(text)


def say(text: str) -> None:
    """On stderr; it must not break anything."""
    print(text, file=Stream(None), flush=True)


def warn(text: str) -> None:
    """Say something on stderr that must not be lost."""
    say(f"at_once_dask: {text}")


def let_inspect(report: Report, page: str | None = None) -> None:
    """Wait for Enter or Ctrl-C, so that somebody can look at the dashboard; needs a terminal."""
    stdin, stderr = sys.stdin, Stream(None)
    if stdin is None or not stdin.isatty() or not stderr.isatty():
        return
    print(report.summary(), file=stderr)
    links = " or ".join(filter(None, (page, report.dashboard_link)))
    print(f"Inspect: {links}\nEnter or Ctrl-C goes on.", file=stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        stdin.readline()
