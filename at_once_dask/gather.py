"""On a worker: the pairs of one partition's inputs, gathered by key into one Piece."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from at_once_dask import pickles
from at_once_dask.failure import Failure, from_exception
from at_once_dask.lease import Lease
from at_once_dask.states import COMBINE

Pairs = list[tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one partition gives to the reduction; crosses to the driver in one piece.

    Attributes
    ----------
    keys : bytes
        The keys in order of first appearance, a pickled list. A key may repeat, each time with a
        value of its own.
    sizes : array of int
        How many bytes of `data` belong to each key.
    data : bytes
        For each key, pickled: the list of its values in input order; with a combiner the
        combined value; or the Failure of the combiner for this key.
    """

    keys: bytes
    sizes: array[int]
    data: bytes


class Lists:
    """Gathers for `reduce_fn`: all values of a key, in input order."""

    def __init__(self) -> None:
        self.made: list[tuple[int, Pairs]] = []

    def add(self, lease: Lease, position: int, pairs: Pairs) -> None:
        self.made.append((position, pairs))

    def close(self) -> Piece:
        """The piece; raises when any of the values cannot be pickled."""
        groups: dict[Any, list[Any]] = {}
        for _, pairs in self.made:
            for key, value in pairs:
                values = groups.get(key)
                if values is None:
                    groups[key] = [value]
                else:
                    values.append(value)
        return _pack(groups, [pickles.dumps(values) for values in groups.values()])


class Folds:
    """Gathers for `combine_fn`: the values of a key, folded pairwise as they come."""

    def __init__(self, combine_fn: Callable[[Any, Any], Any]) -> None:
        self._combine_fn = combine_fn
        self._totals: dict[Any, Any] = {}

    def add(self, lease: Lease, position: int, pairs: Pairs) -> None:
        """Fold the pairs of one input; raises when one of its values cannot be pickled.

        Tried before folding: afterwards nobody could tell whose value it was.
        """
        pickled = [None if type(v) in _PICKLABLE else pickles.dumps(v) for _, v in pairs]
        lease.stage_is(COMBINE)
        for (key, value), blob in zip(pairs, pickled, strict=True):
            if key in self._totals:
                self._totals[key] = combine(self._combine_fn, self._totals[key], value)
            else:  # a copy: a combiner may add to its first argument, which may stand elsewhere too
                self._totals[key] = value if blob is None else pickles.loads(blob)

    def close(self) -> Piece:
        return _pack(self._totals, [_failing_alone(total) for total in self._totals.values()])


def alone(pairs: Pairs, combining: bool) -> bytes:
    """The Piece of one input, pickled; `combine_fn` is left to the reduction.

    For what must not be made a second time, and where it is not known whose value it is that
    cannot be pickled.
    """
    if not combining:
        gathered = Lists()
        gathered.made.append((0, pairs))
        return pickles.dumps(gathered.close())
    keys = [key for key, _ in pairs]
    return pickles.dumps(_pack(keys, [pickles.dumps(value) for _, value in pairs]))


_PICKLABLE = frozenset({str, bytes, int, float, bool, complex, type(None)})


def combine(combine_fn: Callable[[Any, Any], Any], total: Any, value: Any) -> Any:
    """`combine_fn`, guarded: a key whose combiner has failed stays failed."""
    for side in (total, value):
        if isinstance(side, Failure):
            return side
    try:
        return combine_fn(total, value)
    except BaseException as error:
        return from_exception(-1, "reduce", error)


def _failing_alone(total: Any) -> bytes:
    try:
        return pickles.dumps(total)
    except BaseException as error:
        return pickles.dumps(from_exception(-1, "reduce", error))


def _pack(keys: Iterable[Any], blobs: list[bytes]) -> Piece:
    # A list: in a ``map`` a value that raises StopIteration would end the values in silence.
    return Piece(pickles.dumps(list(keys)), array("q", map(len, blobs)), b"".join(blobs))
