"""How fast it goes, and how long the rest takes.

Noted in one thread, and read in others as well: what has been noted never changes; a list gets
longer, or another one that is thinned out takes its place.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from statistics import fmean

STALE_SECONDS = 5.0  # without anything that ends, at least, before an ETA is not to be trusted

_EVENTS = 1000
_POINTS = 240  # of a series, at most
_FIRST_STEP = 0.5  # seconds between two of its points, as long as there are few
_SMOOTH = 4  # steps that each rate is taken over: outcomes come in batches of half a second


class Eta:
    """How long the rest takes, by the speed of the latter half of the time so far.

    Inputs that are skipped in an instant come first in many runs: a mean over all inputs would
    promise far too much. So the time counts from when the first input that took work began.

    Examples
    --------
    >>> eta = Eta(0.0)
    >>> eta.note(5.0, 10_000, 0)
    >>> for done in range(1, 11):
    ...     eta.note(5.0 + done / 10, 10_000 + done, done)
    >>> round(eta.seconds(90, 6.0), 3)
    9.0
    """

    def __init__(self, now: float) -> None:
        self._events = [(now, 0, 0)]

    def note(self, now: float, handled: int, worked: int) -> None:
        """So many inputs are handled by `now` (seconds), and so many of them took work."""
        if handled == self._events[-1][1]:
            return
        events = self._events
        events.append((now, handled, worked))
        if len(events) > _EVENTS:  # every other one will do; who reads the old list may go on
            self._events = [*events[:-1:2], events[-1]]

    def rate(self) -> float | None:
        """Inputs a second, lately; None before any was handled."""
        events = self._events
        now, handled, worked = events[-1]
        begun = bisect_right(events, 0, key=itemgetter(2)) - 1 if worked else 0
        start = events[begun][0]
        # Since several moments: equal inputs end in step, and one moment may be amid a step.
        moments = [start + share * (now - start) for share in (0.3, 0.35, 0.4, 0.45, 0.5)]
        if moments[-1] >= now:
            return None
        return fmean(_rate_since(events, moment, now, handled) for moment in moments)

    def is_stale(self, left: int, now: float) -> bool:
        """Whether nothing has come for so long that `left` inputs should have been handled."""
        since, rate = now - self._events[-1][0], self.rate()
        return since > STALE_SECONDS and (rate is None or since > 2 * left / rate)

    def seconds(self, left: int, now: float) -> float | None:
        """Seconds until `left` more inputs are handled; None when nobody can know.

        At least as long as nothing has come by now: the last input may be a slow one.
        """
        rate = self.rate()
        return None if rate is None else max(left / rate, now - self._events[-1][0])


def _rate_since(
    events: list[tuple[float, int, int]], moment: float, now: float, handled: int
) -> float:
    since, before, _ = events[bisect_right(events, moment, key=itemgetter(0)) - 1]
    return (handled - before) / (now - since)


class Series:
    """The rate over time, in a bounded number of points: the longer, the further apart.

    Parameters
    ----------
    now : float
        Seconds, when it begins.

    Examples
    --------
    >>> series = Series(100.0)
    >>> for second in range(1, 9):
    ...     series.note(100.0 + second, 10 * second)
    >>> series.rates()[-1]
    (8.0, 10.0)
    """

    def __init__(self, now: float) -> None:
        self._points = [(now, 0)]
        self._step = _FIRST_STEP

    def note(self, now: float, worked: int, last: bool = False) -> None:
        """So many inputs took work by `now`."""
        points = self._points
        if now - points[-1][0] < self._step and not last:
            return
        points.append((now, worked))
        if len(points) > _POINTS:
            self._points = points[::2]
            self._step *= 2

    def rates(self) -> list[tuple[float, float]]:
        """Seconds since the beginning, and inputs a second in the steps before."""
        points = self._points[:]
        begun = points[0][0]
        found = []
        for n, (at, worked) in enumerate(points[1:], 1):
            since, before = points[max(0, n - _SMOOTH)]
            found.append((at - begun, (worked - before) / max(at - since, 1e-3)))
        return found

    def rate(self, now: float, worked: int) -> float:
        """Inputs a second in the last steps: where none ends any more it falls."""
        since, before = self._points[-_SMOOTH:][0]
        return max(0.0, (worked - before) / max(now - since, 1e-3))
