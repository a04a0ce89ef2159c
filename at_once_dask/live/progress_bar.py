"""Progress: what was processed, skipped, failed, what is left and how long that takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from at_once_dask.live.activity import AtWork, Workers, activities
from at_once_dask.live.console import Screen, View, screen, warn
from at_once_dask.live.eta import Eta
from at_once_dask.protocol.events import LONG_SECONDS, Running
from at_once_dask.protocol.status import FAILED, PENDING, PROCESSED, SKIPPED, stage
from at_once_dask.report.ledger import Cause, Ledger
from at_once_dask.report.summary import counted, duration, elapsed, example, message_line, speed
from at_once_dask.user_code.notebook import in_notebook
from at_once_dask.user_code.text import safe_repr

FORGET_SECONDS = 3.0  # a worker of which nothing was seen for so long is no longer at it
LOOK_SECONDS = 1.0  # between two looks at what runs
NAME_LENGTH = 40  # of an input in the progress, at most
NAME_LEAST = 12  # and where the terminal is narrow
CAUSES_SHOWN = 5  # of a run, as they first come
ALARMING = 50  # inputs that have all failed for one cause, before any has not
RATE_SECONDS = 1.0  # a pass that took less says nothing of speed


class ProgressBar:
    """Shows the progress of one pass over a ledger; a context manager.

    Parameters
    ----------
    ledger
        What is shown.
    total : int or None
        How many inputs there are, where that is known.
    what : str
        The first word of the line.
    causes : Ledger, optional
        The run's, whose causes are shown as they come; by default `ledger`.
    links
        What a notebook shows beside it.
    begun : float, optional
        When what is shown began, if that is not now.
    eta : Eta, optional
        Shared with who else looks on.
    stream : text stream
        Where it goes; a bar on a terminal, else a plain line now and then, and one at the end.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        total: int | None,
        what: str,
        *,
        causes: Ledger | None = None,
        links: Mapping[str, str] | None = None,
        begun: float | None = None,
        eta: Eta | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._total = total
        self._what = what
        self._causes = ledger if causes is None else causes
        self._n_shown = self._causes.n_causes
        self._all_fail = causes is None  # so far; of keys nobody asks
        self._clock = clock
        self._shown = clock()
        self._begun = self._shown if begun is None else begun
        self._eta = Eta(self._shown) if eta is None else eta
        self._slowest = Slowest(clock)
        self._workers: Workers | None = None
        self._is_over = False
        self._screen: Screen = screen(stream, total, links or {})

    def __enter__(self) -> ProgressBar:
        self._screen.begin(self._view())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._workers = None
        self._is_over = True
        self._show_causes()
        self._screen.end(self._view())

    def running(self, event: Running) -> None:
        self._slowest.note(event)

    def begin(self, workers: Workers) -> None:
        """Who works at what, from now on."""
        self._workers = workers

    def tick(self) -> None:
        now = self._clock()
        self._eta.note(now, self._ledger.n_handled, self._ledger.n_worked)
        self._show_causes()
        self._alarm()
        if now - self._shown >= self._screen.seconds:
            self._slowest.look(self._workers)
            self._shown = now
            self._screen.draw(self._view())

    def say(self, text: str) -> None:
        """A line that stays; in a notebook not in the display, which keeps its last line only."""
        if in_notebook():
            warn(text)
        else:
            self._screen.say(f"at_once_dask: {text}")

    def line(self, width: int = sys.maxsize) -> str:
        """Counts and ETA; then, where they fit into `width`, what runs longest, and the speed."""
        text = ", ".join([*self._counts(), self._time()])
        if len(text) > width:
            return self._short()
        if self._left() != 0 and not self._is_over:
            text += self._slowest.text(width - len(text))
        rate = self._rate()
        more = "" if rate is None else f", {speed(rate)}"
        return text + more if len(text + more) <= width else text

    def _view(self) -> View:
        prefix = f"{self._what}: "
        return View(
            lambda width: prefix + self.line(width - len(prefix)),
            self._ledger.n_handled,
            self._total,
            self._failed(),
        )

    def _counts(self) -> list[str]:
        counts = self._ledger.counts
        state, name = (PENDING, "pending") if counts[PENDING] else (PROCESSED, "processed")
        parts = [
            f"{counts[state]:,} {name}",
            f"{counts[SKIPPED]:,} skipped",
            f"{self._failed():,} failed",
        ]
        left = self._left()
        return parts if left is None else [*parts, f"{left:,} left"]

    def _short(self) -> str:
        """The counts that matter most, where there is no room for all."""
        done, failed = self._done(), self._failed()
        parts = [f"{done:,} done" if self._total is None else f"{done:,}/{self._total:,}"]
        return ", ".join([*parts, *([f"{failed:,} failed"] if failed else []), self._time()])

    def _time(self) -> str:
        """How long it takes; how long it took, when it is over or nobody knows how much is left."""
        now, left = self._clock(), self._left()
        waits = 0.0 if self._workers is None else self._workers.waits
        if left != 0 and waits > LOOK_SECONDS and not self._is_over:
            return f"waiting for a worker for {duration(waits)}"
        if not left or self._is_over:
            return f"in {elapsed(now - self._begun)}"
        if self._waits():
            return f"waiting for {counted(left, 'key' if self._what == 'reduce' else 'input')}"
        seconds = self._eta.seconds(left, now)
        return "ETA ?" if seconds is None else f"ETA {duration(seconds)}"

    def _rate(self) -> float | None:
        """Inputs a second, where that says something."""
        over = self._left() == 0
        if self._waits() or (over and self._clock() - self._begun < RATE_SECONDS):
            return None
        return self._eta.rate()

    def _waits(self) -> bool:
        """Whether only inputs that run are left, and none has ended for long."""
        left = self._left()
        if not left or self._workers is None or left > len(self._workers.in_flight()):
            return False
        return self._eta.is_stale(left, self._clock())

    def _left(self) -> int | None:
        return None if self._total is None else max(0, self._total - self._done())

    def _done(self) -> int:
        return self._ledger.n_handled

    def _failed(self) -> int:
        return self._ledger.counts[FAILED]

    def _show_causes(self) -> None:
        """Each new cause, as it first comes: so that nobody waits for the end to learn of it."""
        n = min(self._causes.n_causes, CAUSES_SHOWN)
        for number, cause in enumerate(self._causes.as_they_came(self._n_shown, n), self._n_shown):
            self._screen.say(f"{'new' if number else 'first'} failure: {_described(cause)}")
        self._n_shown = max(self._n_shown, n)

    def _alarm(self) -> None:
        """Say it when nothing works: somebody who sees it saves hours."""
        n = self._ledger.n_worked
        if not self._all_fail or (n == self._ledger.counts[FAILED] and n < ALARMING):
            return
        self._all_fail = False
        if n == self._ledger.counts[FAILED] and self._causes.n_causes == 1 and self._left() != 0:
            stop = "the stop button" if in_notebook() else "Ctrl-C"
            self._screen.say(
                f"ALL {n:,} INPUTS SO FAR HAVE FAILED, for this one cause. {stop} ends the run, and"
                " the same call goes on when it is fixed; max_failures=50 would end it by itself."
            )


class Slowest:
    """The input that has run longest, of those seen a short time ago.

    Parameters
    ----------
    clock : callable
        Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked = clock()
        self._seen: dict[str, tuple[float, Running]] = {}  # when, by worker
        self._named: tuple[object, str] = (None, "")

    def note(self, event: Running) -> None:
        self._seen[event.worker] = (self._clock(), event)

    def look(self, workers: Workers | None) -> None:
        """By the progress files; where none is seen, workers report it."""
        if self._clock() - self._looked < LOOK_SECONDS:
            return
        self._looked = self._clock()
        current = [activity.current for activity in activities(workers)]
        named = [at for at in current if at is not None and at.progress.position is not None]
        if not named:
            return
        slowest = min(named, key=lambda at: at.progress.since)
        seconds = time.monotonic() - slowest.progress.since
        if seconds > LONG_SECONDS:
            what, name = stage(slowest.progress.doing), self._name(slowest)
            self.note(Running(slowest.flight.worker, seconds, what, name))

    def _name(self, slowest: AtWork) -> str:
        """Its `repr`, which may be slow and is the user's code: only of this one, and once."""
        key = slowest.flight.id, slowest.progress.position
        if self._named[0] != key:
            self._named = key, safe_repr(slowest.inp)
        return self._named[1]

    def text(self, room: int) -> str:
        """For the end of a line, where there is `room` for it; empty where nothing runs long."""
        now = self._clock()
        self._seen = {w: seen for w, seen in self._seen.items() if now - seen[0] < FORGET_SECONDS}
        if not self._seen:
            return ""
        at, event = max(self._seen.values(), key=lambda seen: seen[1].seconds - seen[0])
        rest = f" in {event.stage} for {duration(event.seconds + now - at)}"
        room -= len(", slowest: ")
        if room < NAME_LEAST + len(rest):
            rest = ""
        name = _one_line(event.inp)
        limit = min(NAME_LENGTH, room - len(rest))
        if len(name) > limit:
            name = "…" + name[1 - limit :]  # its end tells more than its beginning
        return f", slowest: {name}{rest}" if room >= NAME_LEAST else ""


class NoProgress:
    """No progress."""

    def __enter__(self) -> NoProgress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def begin(self, workers: Workers) -> None:
        pass

    def tick(self) -> None:
        pass

    def running(self, event: Running) -> None:
        pass

    def say(self, text: str) -> None:
        pass


def _described(cause: Cause) -> str:
    """One line: what and where, with the input."""
    return _one_line(
        f"{cause.example.failure.what}, {example(cause)}: {message_line(cause.example)}"
    )


def _one_line(text: str) -> str:
    """`text` in one line, without what would disturb a terminal."""
    return "".join(char for char in " ".join(text.split()) if char.isprintable())
