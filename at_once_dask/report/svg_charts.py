"""Charts as SVG: shapes only, which stretch with the page; the words beside them are HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from at_once_dask.protocol.status import FAILED, PROCESSED
from at_once_dask.report.summary import took
from at_once_dask.report.timeline import timed, timeline

if TYPE_CHECKING:
    from at_once_dask.report.ledger import Ledger

WIDTH = 1000  # units of a row; it is stretched to the width of the page
MOST_BARS = 60_000
N_BINS = 40  # of the histogram
HEIGHT = 100  # units of the histogram
SHORTEST = 1e-7  # seconds; zero has no place on a logarithmic axis
SPAN_LEAST = 10.0  # of the axis, from its shortest to its longest duration
LEAST_BAR = 1.0  # units: less could not be seen

_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200)


@dataclass(frozen=True)
class Tick:
    """A word on an axis, at `percent` of its length."""

    percent: float
    text: str

    @property
    def anchor(self) -> str:
        """Which of its ends is there, so that it does not stick out."""
        if 6 < self.percent < 94:
            return "middle"
        return "start" if self.percent < 50 else "end"


@dataclass(frozen=True)
class Row:
    """One worker: the shapes of each state, as SVG path data."""

    worker: str
    paths: list[tuple[int, str]]


@dataclass(frozen=True)
class Rows:
    """The timeline of the workers."""

    rows: list[Row]
    n_hidden: int
    ticks: list[Tick]


@dataclass(frozen=True)
class Histogram:
    """How many inputs took how long, on a logarithmic axis."""

    bars: list[tuple[int, float, float]]  # bin, height of the processed, and of the failed
    most: int  # inputs in the highest bar
    ticks: list[Tick]


def workers(ledger: Ledger) -> Rows:
    """The timeline; neighbouring inputs that look the same share a bar."""
    import numpy as np

    found = timeline(ledger, MOST_BARS, WIDTH)
    if not found.rows:
        return Rows([], 0, [])
    unit = WIDTH / max(found.span, 1e-9)
    left = found.start * unit
    # A tenth of a microsecond after the epoch is less than a float tells: then it is all of it.
    widths = np.clip((found.end - found.start) * unit, LEAST_BAR, WIDTH)
    left = np.minimum(left, WIDTH - LEAST_BAR)
    rows = []
    for number, worker in enumerate(found.rows):
        paths = []
        for state in sorted(set(found.state[found.row == number].tolist()), key=FAILED.__eq__):
            (mine,) = np.nonzero((found.row == number) & (found.state == state))
            paths.append((state, _path(left[mine].tolist(), widths[mine].tolist())))
        rows.append(Row(worker, paths))
    return Rows(rows, found.n_hidden, time_ticks(found.span))


def histogram(ledger: Ledger) -> Histogram | None:
    """How long inputs took that were worked on, whether they failed or not; None without any."""
    import numpy as np

    low, high = math.inf, 0.0
    for part in timed(ledger):
        seconds = part.seconds[np.isin(part.state, (PROCESSED, FAILED))]
        if len(seconds):
            low, high = min(low, float(seconds.min())), max(high, float(seconds.max()))
    if low > high:
        return None
    low = max(low, SHORTEST)
    widen = max(1.1, math.sqrt(SPAN_LEAST * low / max(low, high)))
    low, high = low / widen, max(low, high) * widen
    edges = np.geomspace(low, high, N_BINS + 1)
    processed, failed = np.zeros(N_BINS, dtype=np.int64), np.zeros(N_BINS, dtype=np.int64)
    for part in timed(ledger):
        for state, counts in ((PROCESSED, processed), (FAILED, failed)):
            seconds = np.clip(part.seconds[part.state == state], low, high)
            counts += np.histogram(seconds, edges)[0]
    most = int((processed + failed).max())
    bars = [
        (bin, _height(n, most), _height(n_failed, most))
        for bin, (n, n_failed) in enumerate(zip(processed.tolist(), failed.tolist(), strict=True))
        if n or n_failed
    ]
    return Histogram(bars, most, _log_ticks(low, high))


def time_ticks(span: float, most: int = 5) -> list[Tick]:
    """Round seconds from 0 to `span`, not more than `most` steps."""
    if span <= 0:
        return [Tick(0.0, "0 s")]
    step = next((step for step in _steps(span) if span / step <= most), span)
    n = int(span / step * (1 + 1e-9))
    return [Tick(100 * number * step / span, took(number * step)) for number in range(n + 1)]


def _steps(span: float) -> Sequence[float]:
    if span < 5:
        small = 10.0 ** math.floor(math.log10(span) - 1)
        return [small * factor for factor in (1, 2, 5, 10, 20)]
    days = range(86_400, int(span) + 2 * 86_400, 86_400)
    return [*_STEPS, *days]


def _log_ticks(low: float, high: float, most: int = 6) -> list[Tick]:
    """Round durations between the two; powers of ten where there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [
            value
            for decade in decades
            for value in (factor * 10.0**decade for factor in factors)
            if low <= value <= high
        ]
        if len(ticks) <= most:
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / most)]
    length = math.log(high / low)
    return [Tick(100 * math.log(value / low) / length, took(value)) for value in ticks]


def _path(lefts: list[float], widths: list[float]) -> str:
    return "".join(
        f"M{left:.4g} 0h{width:.3g}v1h-{width:.3g}z"
        for left, width in zip(lefts, widths, strict=True)
    )


def _height(n: int, most: int) -> float:
    """In proportion; but a single straggler among a million is to be seen too."""
    return max(HEIGHT * n / most, 2.0) if n else 0.0
