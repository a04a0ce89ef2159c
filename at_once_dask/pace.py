"""How many inputs the next partition gets: about half a slice of work, by what was measured."""

from __future__ import annotations

from at_once_dask.flow import SLICE_SECONDS

FIRST = 8  # inputs of the first partitions
GROWTH = 8  # times the largest so far, at most
FLOOR_SECONDS = 0.05  # partitions get no smaller towards the end than this
CAUTIOUS = 1000  # inputs a partition at most where the first failure ends the run


class Pace:
    """Sizes of partitions: small first, growing quickly, smaller again towards the end.

    Parameters
    ----------
    cautious : bool
        Keep partitions small, so that not much is drawn in vain when the run stops.
    """

    def __init__(self, cautious: bool = False) -> None:
        self._most = CAUTIOUS if cautious else 10**9
        self._largest = FIRST // GROWTH
        self._seconds_each: float | None = None

    def size(self, left: int | None, threads: int) -> int:
        """How many inputs to take when `left` are left, if known, for so many `threads`."""
        wanted = min(self._largest * GROWTH, self._most)
        floor = 1
        if self._seconds_each is not None:
            wanted = min(wanted, int(SLICE_SECONDS / self._seconds_each))
            floor = int(FLOOR_SECONDS / self._seconds_each)
        if left is not None:
            wanted = min(wanted, max(floor, left // (4 * max(1, threads))))
        return max(1, wanted)

    def learn(self, n: int, seconds: float) -> None:
        """A partition took `seconds` for `n` inputs."""
        if n == 0:
            return
        self._largest = max(self._largest, n)
        each = max(seconds / n, 1e-9)
        old = each if self._seconds_each is None else self._seconds_each
        self._seconds_each = (old + each) / 2
