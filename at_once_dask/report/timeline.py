"""When each worker was at what: a bounded number of bars, however many inputs there were."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from at_once_dask.protocol.status import FAILED, NAMES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from at_once_dask.report.ledger import Ledger

MOST_ROWS = 40  # from which on a worker goes on in the row of one that has ended
MOST_LANES = 100  # rows that are drawn

_CHUNK = 2**20  # inputs that are looked at together


class Timed(NamedTuple):
    """Inputs that a worker was at, as arrays."""

    position: NDArray[np.int64]
    state: NDArray[np.int64]
    start: NDArray[np.float64]
    seconds: NDArray[np.float64]
    worker: NDArray[np.int64]


@dataclass(frozen=True)
class Timeline:
    """Bars, as arrays of equal length: neighbours of a row and state share one when there are many.

    Attributes
    ----------
    rows : list of str
        The workers' addresses; of a row of several that of one.
    n_hidden : int
        Workers that are not drawn.
    span : float
        Seconds from the begin of the first input to the end of the last.
    row, state, start, end
        Where each bar is; times in seconds since the first input began.
    n : array
        How many inputs it stands for.
    position, longest : array
        Of the longest of them: its position in the list as given, and its seconds.
    worker : list of str
        And the address of the worker that was at it.
    """

    rows: list[str]
    n_hidden: int
    span: float
    row: Any
    state: Any
    start: Any
    end: Any
    n: Any
    position: Any
    longest: Any
    worker: list[str]


def timed(ledger: Ledger) -> Iterator[Timed]:
    """The inputs that were worked on, a stretch of the list at a time: that needs little memory."""
    import numpy as np

    for first in range(0, len(ledger.states), _CHUNK):
        part = slice(first, first + _CHUNK)
        start, seconds = np.array(ledger.starts[part]), np.array(ledger.seconds[part])
        worker = np.array(ledger.workers[part], dtype=np.int64)
        (known,) = np.nonzero((worker >= 0) & (start >= 0) & (seconds >= 0))
        state = np.frombuffer(ledger.states[part], dtype=np.uint8)[known].astype(np.int64)
        yield Timed(known + first, state, start[known], seconds[known], worker[known])


def timeline(ledger: Ledger, most_bars: int, most_bins: int) -> Timeline:
    """The bars; where there are more than `most_bars`, time is cut into at most `most_bins`."""
    begins, ends, n_timed = _spans(ledger)
    if not n_timed:
        return Timeline([], 0, 0.0, *([],) * 8)
    zero, span = begins.min(), float(ends.max() - begins.min())
    lanes = _lanes(begins, ends)
    n_lanes = min(max(lanes) + 1, MOST_LANES)
    n_hidden = sum(lane >= n_lanes for lane in lanes)
    rows = [ledger.names[lanes.index(lane)] for lane in range(n_lanes)]
    if n_timed <= most_bars:
        bars = _each(ledger, lanes, zero)
    else:
        n_bins = max(1, min(most_bins, most_bars // (n_lanes * len(NAMES))))
        bars = _merged(ledger, lanes, zero, span, n_bins)
    shown = bars[0] < n_lanes
    row, state, start, end, n, position, longest = (column[shown] for column in bars)
    worker = [ledger.names[ledger.workers[place]] for place in position.tolist()]
    if ledger.order is not None:
        position = [ledger.order[place] for place in position.tolist()]
    return Timeline(rows, n_hidden, span, row, state, start, end, n, position, longest, worker)


def _spans(ledger: Ledger) -> tuple[Any, Any, int]:
    """When each worker began its first input and ended its last; how many inputs there are."""
    import numpy as np

    begins = np.full(len(ledger.names), np.inf)
    ends = np.full(len(ledger.names), -np.inf)
    n_timed = 0
    for part in timed(ledger):
        np.minimum.at(begins, part.worker, part.start)
        np.maximum.at(ends, part.worker, part.start + part.seconds)
        n_timed += len(part.worker)
    return begins, ends, n_timed


def _lanes(begins: Any, ends: Any) -> list[int]:
    """The row of each worker.

    A worker that has died is replaced by one with another address: when there are many, the next
    goes on in the row of one that has ended.
    """
    lanes = list(range(len(begins)))
    if len(lanes) <= MOST_ROWS:
        return lanes
    free: list[tuple[float, int]] = []  # a heap: since when, which
    n_lanes = 0
    for worker in begins.argsort(kind="stable").tolist():
        if free and free[0][0] <= begins[worker]:
            _, lanes[worker] = heapq.heappop(free)
        else:
            lanes[worker], n_lanes = n_lanes, n_lanes + 1
        heapq.heappush(free, (float(ends[worker]), lanes[worker]))
    return lanes


def _each(ledger: Ledger, lanes: list[int], zero: float) -> tuple[Any, ...]:
    """A bar an input."""
    import numpy as np

    columns = zip(*timed(ledger), strict=True)
    position, state, start, seconds, worker = (np.concatenate(column) for column in columns)
    start = start - zero
    row = np.array(lanes)[worker]
    return row, state, start, start + seconds, np.ones_like(row), position, seconds


def _merged(
    ledger: Ledger, lanes: list[int], zero: float, span: float, n_bins: int
) -> tuple[Any, ...]:
    """A bar for all inputs of one row and state that began in one bin of time."""
    import numpy as np

    n_bars = (max(lanes) + 1) * len(NAMES) * n_bins
    n = np.zeros(n_bars, dtype=np.int64)
    start, end = np.full(n_bars, np.inf), np.zeros(n_bars)
    longest, position = np.full(n_bars, -1.0), np.zeros(n_bars, dtype=np.int64)
    rows = np.array(lanes)
    for part in timed(ledger):
        since = part.start - zero
        bin = np.minimum((since * (n_bins / max(span, 1e-9))).astype(np.int64), n_bins - 1)
        bar = (rows[part.worker] * len(NAMES) + part.state) * n_bins + bin
        n += np.bincount(bar, minlength=n_bars)
        np.minimum.at(start, bar, since)
        np.maximum.at(end, bar, since + part.seconds)
        np.maximum.at(longest, bar, part.seconds)
        is_longest = part.seconds == longest[bar]
        position[bar[is_longest]] = part.position[is_longest]
    (used,) = n.nonzero()
    row, state = np.divmod(used // n_bins, len(NAMES))
    return row, state, start[used], end[used], n[used], position[used], longest[used]


def drawn_last(state: Any) -> Any:
    """The order in which bars are drawn: what has failed comes last, and is seen."""
    import numpy as np

    return np.argsort(np.asarray(state) == FAILED, kind="stable")
