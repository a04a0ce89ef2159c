"""On a worker: the pairs of one partition's inputs, gathered by key into one Piece."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from at_once_dask import pickles
from at_once_dask.failure import Failure, from_exception

Pairs = list[tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one partition gives to the reduction; crosses to the driver in one piece.

    Attributes
    ----------
    keys : bytes
        The keys in order of first appearance, a pickled list.
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
        self._made: list[tuple[int, Pairs]] = []

    def add(self, position: int, pairs: Pairs) -> None:
        self._made.append((position, pairs))

    def close(self) -> tuple[Piece, list[Failure]]:
        """The piece, and a failure for each input whose pairs cannot be pickled."""
        try:
            return _pack(self._grouped()), []
        except BaseException:
            failures = self._drop_unpicklable()
            return _pack(self._grouped()), failures

    def _grouped(self) -> dict[Any, Any]:
        groups: dict[Any, list[Any]] = {}
        for _, pairs in self._made:
            for key, value in pairs:
                values = groups.get(key)
                if values is None:
                    groups[key] = [value]
                else:
                    values.append(value)
        return groups

    def _drop_unpicklable(self) -> list[Failure]:
        failures, kept = [], []
        for position, pairs in self._made:
            try:
                pickles.dumps(pairs)
            except BaseException as error:
                failures.append(from_exception(position, "collect", error))
            else:
                kept.append((position, pairs))
        self._made = kept
        return failures


class Folds:
    """Gathers for `combine_fn`: the values of a key, folded pairwise as they come."""

    def __init__(self, combine_fn: Callable[[Any, Any], Any]) -> None:
        self._combine_fn = combine_fn
        self._totals: dict[Any, Any] = {}

    def add(self, position: int, pairs: Pairs) -> None:
        """Fold the pairs of one input; raises when one of its values cannot be pickled.

        Tried before folding: afterwards nobody could tell whose value it was.
        """
        pickled = [None if type(v) in _PICKLABLE else pickles.dumps(v) for _, v in pairs]
        for (key, value), blob in zip(pairs, pickled, strict=True):
            if key in self._totals:
                self._totals[key] = combine(self._combine_fn, self._totals[key], value)
            else:  # a copy: a combiner may add to its first argument, which may stand elsewhere too
                self._totals[key] = value if blob is None else pickles.loads(blob)

    def close(self) -> tuple[Piece, list[Failure]]:
        return _pack(self._totals, _failing_alone), []


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


def _pack(groups: dict[Any, Any], dumps: Callable[[Any], bytes] = pickles.dumps) -> Piece:
    blobs = [dumps(group) for group in groups.values()]
    return Piece(pickles.dumps(list(groups)), array("q", map(len, blobs)), b"".join(blobs))
