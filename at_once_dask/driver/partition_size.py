"""How many inputs the next partition gets: about half a slice of work, by what was measured."""

from __future__ import annotations

from at_once_dask.protocol.task import SLICE_SECONDS

FIRST = 10_000  # inputs of the first partitions, of which nobody knows how long they take
FIRST_CAUTIOUS = 8
FIRST_SECONDS = 0.05  # so some of these come back soon, with what they have done until then
# A slice is so long for each place in flight that the driver, which a partition costs some 8 ms,
# needs no more than half a core.
SECONDS_A_SLOT = 0.016
GROWTH = 64  # times the largest so far, at most
UNKNOWN_SECONDS = 0.5  # an input, before any was handled: as Dask expects of a task
FLOOR = 0.1  # of a slice: partitions get no smaller towards the end
PAYLOAD_BYTES = 8 * 2**20  # of the inputs of a partition, unless one alone is larger
VALUE_BYTES = 64 * 2**20  # that a partition's inputs give, at most
MOST = 30_000  # inputs a partition: each costs the driver some 40 bytes while it is in flight
CAUTIOUS = 1000  # inputs a partition at most where the first failure ends the run


class PartitionSizer:
    """Sizes of partitions: short first, growing quickly; smaller again where workers must be asked.

    Parameters
    ----------
    cautious : bool
        Keep partitions small, so that not much is drawn in vain when the run stops.
    """

    def __init__(self, cautious: bool = False) -> None:
        self._most = CAUTIOUS if cautious else MOST
        self._first = FIRST_CAUTIOUS if cautious else FIRST
        self._first_share: int | None = None
        self._largest = 0
        self._seconds_each: float | None = None
        self._bytes_each = 0.0
        self._payload_each = 0.0

    def seconds(self, slots: int) -> float:
        """How long the next partition may run before it returns what it has."""
        if self._seconds_each is None and self._first_share in (None, self._first):
            return FIRST_SECONDS
        return slice_seconds(slots)

    def size(self, left: int | None, slots: int, n_idle: int | None = None) -> int:
        """How many inputs to take when `left` are left, if known, for so many in flight.

        Where what is not started can be taken back at once, towards the end only those who have
        nothing to do share what is left; else partitions get smaller.
        """
        if self._seconds_each is None:
            return max(1, min(self._first_size(left, slots), self.fits))
        wanted = min(
            self.fits, self._largest * GROWTH, int(slice_seconds(slots) / self._seconds_each)
        )
        if self._bytes_each:
            wanted = min(wanted, int(VALUE_BYTES / self._bytes_each))
        if left is not None and n_idle is not None:
            wanted = min(wanted, -(-left // max(1, n_idle)))
        elif left is not None:
            floor = int(FLOOR * slice_seconds(slots) / self._seconds_each)
            wanted = min(wanted, max(floor, left // max(1, slots)))
        return max(1, wanted)

    def work(self, left: int | None, in_flight: int, n_idle: int = 0) -> float | None:
        """Seconds that one worker needs for what is left, and out; None where nobody knows.

        Where workers are idle, no more is left than is out: a generator does not give it faster.
        """
        if left is None and not n_idle:
            return None
        left = left or 0
        each = UNKNOWN_SECONDS if self._seconds_each is None else self._seconds_each
        return (left + in_flight) * each

    def _first_size(self, left: int | None, slots: int) -> int:
        """A short list is handed out whole; what that does not balance, is asked back later."""
        if left is None:
            return self._first
        if self._first_share is None:
            self._first_share = max(1, min(self._first, -(-left // max(1, slots))))
        return self._first_share

    @property
    def fits(self) -> int:
        """How many inputs a partition may have, by their size."""
        by_size = int(PAYLOAD_BYTES / self._payload_each) if self._payload_each else self._most
        return max(1, min(by_size, self._most))

    def weigh(self, n_bytes: float) -> None:
        """One more input makes a partition so many bytes larger."""
        self._payload_each = n_bytes

    def packed(self, n: int, n_bytes: int) -> None:
        """So many inputs together were so many bytes: one of them is no larger than its share."""
        self._payload_each = min(self._payload_each, n_bytes / n)

    def learn(self, n: int, seconds: float, n_bytes: int = 0) -> None:
        """A partition took `seconds` for `n` inputs, which gave values of so many bytes."""
        if n == 0:
            return
        self._largest = max(self._largest, n)
        each = max(seconds / n, 1e-9)
        old = each if self._seconds_each is None else self._seconds_each
        self._seconds_each = (old + each) / 2
        self._bytes_each = (self._bytes_each + n_bytes / n) / 2


def slice_seconds(slots: int) -> float:
    """How long a partition is to take where so many are in flight."""
    return max(SLICE_SECONDS, SECONDS_A_SLOT * slots)
