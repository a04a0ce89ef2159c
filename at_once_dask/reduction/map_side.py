"""On a worker: the pairs of one partition's inputs, grouped by key into one Piece."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import IO, Any

import numpy as np

from at_once_dask.protocol.failure import Failure, from_exception
from at_once_dask.protocol.function_results import Pairs
from at_once_dask.protocol.progress_file import ProgressFile
from at_once_dask.protocol.status import COMBINE
from at_once_dask.protocol.task import Piece
from at_once_dask.reduction import arrays
from at_once_dask.reduction.arrays import KeyNumbers
from at_once_dask.user_code import pickling

FILED_BYTES = 2**20  # of a partition's values, from which on they are put into a file
FILED_EACH = 4096  # bytes a key, on average: smaller ones are not worth reading one by one


class Lists:
    """Gathers for `reduce_fn`: all values of a key, in input order."""

    def __init__(self) -> None:
        self.made: list[tuple[int, Pairs]] = []

    def add(self, progress: ProgressFile, position: int, pairs: Pairs) -> None:
        self.made.append((position, pairs))

    def close(self, values_file: str | None = None) -> Piece:
        """The piece, large values in a file; raises when a value cannot be pickled."""
        return self._of_numbers(values_file) or self._of_any(values_file)

    def _of_numbers(self, values_file: str | None) -> Piece | None:
        """Where all values are numbers, and no file would be better."""
        values = arrays.of_values(list(chain.from_iterable(pairs.values for _, pairs in self.made)))
        if values is None:
            return None
        known = KeyNumbers()
        keys = chain.from_iterable(pairs.keys for _, pairs in self.made)
        numbers = np.fromiter(map(known.__getitem__, keys), np.int64, len(values))
        n = len(known)
        if values_file is not None and is_for_file(len(values) * arrays.ITEM_BYTES, n):
            return None
        counts = np.bincount(numbers, minlength=n).astype(np.int64)
        sizes = array("q", (arrays.ITEM_BYTES * counts).tobytes())
        data = arrays.taken(values, arrays.grouping(numbers, n))
        return Piece(pickling.dumps(known.order), sizes, data, values.typecode)

    def _of_any(self, values_file: str | None) -> Piece:
        # No `toolz.groupby`: it takes 1.3 times as long, and groups pairs, not values.
        groups: defaultdict[Any, list[Any]] = defaultdict(list)
        for _, pairs in self.made:
            for key, value in zip(*pairs, strict=True):
                groups[key].append(value)
        return _pack(groups, groups.values(), values_file)


class Folds:
    """Gathers for `combine_fn`: the values of a key, folded pairwise as they come."""

    def __init__(self, combine_fn: Callable[[Any, Any], Any]) -> None:
        self._combine_fn = combine_fn
        self._totals: dict[Any, Any] = {}

    def add(self, progress: ProgressFile, position: int, pairs: Pairs) -> None:
        """Fold the pairs of one input; raises when one of its values cannot be pickled.

        Tried before folding: afterwards nobody could tell whose value it was.
        """
        if _PICKLABLE.issuperset(map(type, pairs.values)):
            progress.note(COMBINE)
            self._fold(zip(*pairs, strict=True))
            return
        pickled = [None if type(v) in _PICKLABLE else pickling.dumps(v) for v in pairs.values]
        progress.note(COMBINE)
        for key, value, blob in zip(*pairs, pickled, strict=True):
            if blob is not None and key not in self._totals:
                # A copy: a combiner may add to its first argument, which may stand elsewhere too.
                value = pickling.loads(blob)
            self._fold(iter([(key, value)]))

    def _fold(self, pairs: Iterator[tuple[Any, Any]]) -> None:
        """As `combine` for each pair, with no call for it: here all time is spent."""
        totals, combine_fn = self._totals, self._combine_fn
        going_on = True
        while going_on:
            try:
                for key, value in pairs:
                    if key not in totals:
                        totals[key] = value
                    elif type(total := totals[key]) is not Failure:
                        totals[key] = combine_fn(total, value)
                going_on = False
            except BaseException as error:
                totals[key] = from_exception(-1, "reduce", error)

    def close(self, values_file: str | None = None) -> Piece:
        keys, totals = list(self._totals), list(self._totals.values())
        values = arrays.of_values(totals)
        if values is None:
            return _pack(keys, totals, values_file, _Alone)
        sizes = array("q", [arrays.ITEM_BYTES]) * len(keys)
        return Piece(pickling.dumps(keys), sizes, values.tobytes(), values.typecode)


def alone(pairs: Pairs, combining: bool) -> bytes:
    """The Piece of one input, pickled; `combine_fn` is left to the reduction.

    For what must not be made a second time, and where it is not known whose value it is that
    cannot be pickled.
    """
    if not combining:
        grouped = Lists()
        grouped.made.append((0, pairs))
        return pickling.dumps(grouped.close())
    return pickling.dumps(_pack(pairs.keys, pairs.values))


_PICKLABLE = frozenset({str, bytes, int, float, bool, complex, type(None)})


def combine(combine_fn: Callable[[Any, Any], Any], total: Any, value: Any) -> Any:
    """`combine_fn`, guarded: a key whose combiner has failed stays failed."""
    if type(total) is Failure or type(value) is Failure:
        return total if type(total) is Failure else value
    try:
        return combine_fn(total, value)
    except BaseException as error:
        return from_exception(-1, "reduce", error)


class _Alone:
    """As ``pickling``, but what cannot be pickled gives way to a Failure."""

    @staticmethod
    def dumps(total: object) -> bytes:
        try:
            return pickling.dumps(total)
        except BaseException as error:
            return pickling.dumps(from_exception(-1, "reduce", error))

    @staticmethod
    def dump(total: object, file: IO[bytes]) -> int:
        start = file.tell()
        try:
            return pickling.dump(total, file)
        except OSError:  # it may be the file: there is no space
            raise
        except BaseException as error:
            file.seek(start)
            file.truncate()
            return pickling.dump(from_exception(-1, "reduce", error), file)


def is_for_file(n_bytes: int, n_keys: int) -> bool:
    """Whether values are many bytes, and each key's are enough to be read alone."""
    return n_bytes >= FILED_BYTES and n_bytes >= FILED_EACH * n_keys


def _pack(
    keys: Iterable[Any], values: Iterable[Any], values_file: str | None = None, way: Any = pickling
) -> Piece:
    """The `values` of `keys`, in order, pickled; in `values_file` when they are many bytes."""
    pickled = pickling.dumps(list(keys))
    rest = iter(values)
    first: list[bytes] = []
    held = 0
    for value in rest:  # no generator: it would make another error of a value's StopIteration
        first.append(way.dumps(value))
        held += len(first[-1])
        if held >= FILED_BYTES:
            break
    if values_file is None or not is_for_file(held, len(first)):
        first += [way.dumps(value) for value in rest]
        return Piece(pickled, array("q", map(len, first)), b"".join(first))
    try:
        with open(values_file, "xb") as file:
            sizes = array("q", map(file.write, first))
            sizes.extend([way.dump(value, file) for value in rest])
        return Piece(pickled, sizes, values_file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(values_file)
        raise
