"""Progress: what was processed, skipped, failed, what is left and how long that takes."""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, TextIO

from at_once_dask.crew import Running
from at_once_dask.failure import cut
from at_once_dask.item import FAILED, PENDING, PROCESSED, SKIPPED
from at_once_dask.ledger import Ledger

LINE_SECONDS = 10.0  # between two lines where there is no terminal
REDRAW_SECONDS = 0.2
FORGET_SECONDS = 5.0  # a worker that has told nothing for so long is no longer at it
NAME_LENGTH = 40  # of an input in the progress line
_EVENTS = 1000


class Eta:
    """How long the rest takes, by the speed of the second half of the time so far.

    Inputs that are skipped in an instant come first in many runs: a mean over all inputs would
    promise far too much. In the second half of the time only those that take time are left.

    Examples
    --------
    >>> eta = Eta(0.0)
    >>> eta.note(0.1, 10_000)
    >>> for second in range(1, 11):
    ...     eta.note(float(second), 10_000 + second)
    >>> round(eta.seconds(90))
    90
    """

    def __init__(self, now: float) -> None:
        self._times = [now]
        self._counts = [0]

    def note(self, now: float, handled: int) -> None:
        """So many inputs are handled by `now` (seconds)."""
        if handled == self._counts[-1]:
            return
        self._times.append(now)
        self._counts.append(handled)
        if len(self._times) > _EVENTS:  # every other one will do
            self._times[1:-1] = self._times[1:-1:2]
            self._counts[1:-1] = self._counts[1:-1:2]

    def rate(self) -> float | None:
        """Inputs a second, lately; None before any was handled."""
        last = len(self._times) - 1
        if last == 0:
            return None
        half = self._times[0] + (self._times[last] - self._times[0]) / 2
        then = min(bisect_right(self._times, half) - 1, last - 1)
        seconds = self._times[last] - self._times[then]
        return (self._counts[last] - self._counts[then]) / seconds if seconds > 0 else None

    def seconds(self, left: int) -> float | None:
        """Seconds until `left` more inputs are handled; None when nobody can know."""
        rate = self.rate()
        return left / rate if rate else None


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
        Where it goes; a bar on a terminal or in a notebook, else a plain line now and then.
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
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._begun = self._shown = clock()
        self._eta = Eta(self._begun)
        self._long: dict[str, tuple[float, Running]] = {}
        self._bar: Any = None

    def __enter__(self) -> Ticker:
        if in_notebook() or self._stream.isatty():
            self._bar = _bar(self._what, self._total, self._stream)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._show()
        if self._bar is not None:
            self._bar.close()

    def running(self, event: Running) -> None:
        self._long[event.worker] = (self._clock(), event)

    def tick(self) -> None:
        now = self._clock()
        self._eta.note(now, self._handled())
        if now - self._shown >= (LINE_SECONDS if self._bar is None else REDRAW_SECONDS):
            self._shown = now
            self._show()

    def line(self) -> str:
        """Counts, speed, ETA, and the input that runs longest."""
        counts = self._ledger.counts
        handled = self._handled()
        parts = [
            f"{counts[PROCESSED]:,} processed",
            f"{counts[SKIPPED]:,} skipped",
            f"{counts[FAILED]:,} failed",
        ]
        if counts[PENDING]:
            parts[0] = f"{counts[PENDING]:,} pending"
        rate = self._eta.rate()
        if self._total is not None:
            parts.append(f"{max(0, self._total - handled):,} left")
        if rate is not None:
            parts.append(f"{rate:,.1f}/s")
        if self._total is not None and self._total > handled:
            seconds = self._eta.seconds(self._total - handled)
            parts.append("ETA ?" if seconds is None else f"ETA {duration(seconds)}")
        slowest = self._slowest()
        return ", ".join([*parts, slowest] if slowest else parts)

    def _handled(self) -> int:
        counts = self._ledger.counts
        return counts[PROCESSED] + counts[SKIPPED] + counts[FAILED] + counts[PENDING]

    def _slowest(self) -> str:
        now = self._clock()
        fresh = {w: (at, e) for w, (at, e) in self._long.items() if now - at < FORGET_SECONDS}
        self._long = fresh
        if not fresh:
            return ""
        at, event = max(fresh.values(), key=lambda told: told[1].seconds + now - told[0])
        name = cut(event.inp, NAME_LENGTH)
        return f"slowest: {name} in {event.stage} for {duration(event.seconds + now - at)}"

    def _show(self) -> None:
        if self._bar is None:
            print(f"{self._what}: {self.line()}", file=self._stream, flush=True)
            return
        self._bar.n = self._handled()
        self._bar.set_postfix_str(self.line())


class Silent:
    """No progress."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def tick(self) -> None:
        pass

    def running(self, event: Running) -> None:
        pass


def show_link(link: str, stream: TextIO | None = None) -> None:
    """The dashboard's address at the start of a run: to click on, in a notebook."""
    if in_notebook():
        from IPython.display import HTML, display

        display(HTML(f'Dask dashboard: <a href="{link}" target="_blank">{link}</a>'))
    else:
        print(f"Dask dashboard: {link}", file=stream or sys.stderr, flush=True)


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, which shows more than text."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


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


def _bar(what: str, total: int | None, stream: TextIO) -> Any:
    """A tqdm bar; the widget in notebooks, where ipywidgets is there to show it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns where ipywidgets is missing: text does too
        if in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
            from tqdm.auto import tqdm as bar
        else:
            from tqdm.std import tqdm as bar  # type: ignore[assignment]
    share = "{percentage:3.0f}%|{bar:20}| " if total is not None else ""
    return bar(
        total=total,
        desc=what,
        file=stream,
        bar_format="{desc}: " + share + "{elapsed}{postfix}",
        dynamic_ncols=True,
        mininterval=0,
    )
