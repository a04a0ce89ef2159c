"""From pieces to the result: keys brought together in the driver, folded by ``foldby`` on workers.

The driver brings together what belongs to a key, by the key's own ``==`` and ``hash``, without
opening the values. Then keys are inputs like any others: cut into partitions, leased to workers,
where the bag's ``foldby`` folds the pieces of each key and ``reduce_fn`` is mapped over them.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dask.bag import Bag

from at_once_dask import pickles
from at_once_dask.failure import Failure, from_exception
from at_once_dask.gather import Piece, combine
from at_once_dask.item import refuse_awaitable
from at_once_dask.lease import Lease
from at_once_dask.states import REDUCE

SPILL_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Group:
    """One key as an input of the reduction: the key and the blobs of its pieces, in order."""

    key: Any
    blobs: list[bytes]


class Groups:
    """The driver's collection of pieces: which blob belongs to which key.

    Keys meet in one ``dict``, so what is one key is what Python says is one key, for any type
    and whichever process made it. Values stay pickled, in memory up to `SPILL_BYTES` and in a
    temporary file without a name past it.
    """

    def __init__(self, spill_bytes: int = SPILL_BYTES) -> None:
        self._store = tempfile.SpooledTemporaryFile(max_size=spill_bytes)  # noqa: SIM115
        self._end = 0
        self._numbers: dict[Any, int] = {}  # key -> number, by arrival
        self._first: list[tuple[int, Any]] = []  # number -> start of its first piece, its key
        self._pieces: list[tuple[int, int, int, array[int], array[int]]] = []

    def add(self, start: int, piece: Piece) -> None:
        """Take the piece of the partition that began at position `start`."""
        numbers = array("q")
        for key in pickles.loads(piece.keys):
            number = self._numbers.setdefault(key, len(self._first))
            if number == len(self._first):
                self._first.append((start, key))
            elif start < self._first[number][0]:
                self._first[number] = (start, key)
            numbers.append(number)
        self._store.seek(self._end)
        self._store.write(piece.data)
        self._pieces.append((start, self._end, len(piece.data), numbers, piece.sizes))
        self._end += len(piece.data)

    def __len__(self) -> int:
        return len(self._first)

    def __iter__(self) -> Iterator[Group]:
        """The keys in order of first appearance, each with its blobs in input order."""
        where: dict[int, list[tuple[int, int]]] = {}
        for _, offset, _, numbers, sizes in sorted(self._pieces, key=lambda piece: piece[0]):
            for number, size in zip(numbers, sizes, strict=True):
                where.setdefault(number, []).append((offset, size))
                offset += size
        for number, places in where.items():
            yield Group(self._first[number][1], [self._read(*place) for place in places])

    def _read(self, offset: int, size: int) -> bytes:
        self._store.seek(offset)
        return self._store.read(size)

    def close(self) -> None:
        self._store.close()


@dataclass(slots=True)
class Part:
    """One blob on its way through ``foldby``."""

    position: int
    key: Any
    blob: bytes
    lease: Lease

    def begin(self) -> None:
        """This key is being worked on: the one to blame from here on."""
        self.lease.turn_to(self.position, REDUCE)
        self.lease.inp = self.key


@dataclass(slots=True)
class Total:
    """What ``foldby`` has folded for one key: a list of values, or one combined value."""

    part: Part | None = None
    value: Any = None


@dataclass(slots=True)
class Reduced:
    """The result of one key, or its Failure; not `begun` when time was up before it."""

    position: int
    value: Any
    begun: bool = True

    def pickled(self) -> bytes | Failure:
        """The value on its way to the driver, or why there is none."""
        if isinstance(self.value, Failure):
            self.value.position = self.position
            return self.value
        try:
            return pickles.dumps(self.value)
        except BaseException as error:
            return from_exception(self.position, "reduce", error)


class Fold:
    """The functions of the reducing bag, guarded.

    Parameters
    ----------
    reduce_fn, combine_fn
        As given to ``run``; one of them is ``None``.
    """

    def __init__(
        self,
        reduce_fn: Callable[[list[Any]], Any] | None,
        combine_fn: Callable[[Any, Any], Any] | None,
    ) -> None:
        self.reduce_fn = reduce_fn
        self.combine_fn = combine_fn

    def __dask_tokenize__(self) -> object:
        """As with ``Steps``: the functions are not to be pickled for a name."""
        return id(self)

    def bag(self, parts: Bag) -> Bag:
        """Parts in, one Reduced a key out, lazily."""
        folded: Bag = parts.foldby(
            key=_position,
            binop=self.add,
            initial=Total,
            combine=self.merge,
            combine_initial=Total,
        )
        reduced: Bag = folded.map(self.finish)
        return reduced

    def add(self, total: Total, part: Part) -> Total:
        part.begin()  # the combiner runs in here
        try:
            value = pickles.loads(part.blob)
        except BaseException as error:
            value = from_exception(part.position, "reduce", error)
        return self._fold(total, Total(part, value))

    def merge(self, total: Total, other: Total) -> Total:
        return self._fold(total, other)

    def _fold(self, total: Total, other: Total) -> Total:
        if total.part is None:
            return other
        if self.combine_fn is not None:
            return Total(total.part, combine(self.combine_fn, total.value, other.value))
        if isinstance(total.value, Failure):
            return total
        if isinstance(other.value, Failure):
            return other
        total.value.extend(other.value)
        return total

    def finish(self, folded: tuple[int, Total]) -> Reduced:
        position, total = folded
        assert total.part is not None
        if not total.part.lease.begin(position):
            return Reduced(position, None, begun=False)
        total.part.begin()
        value = total.value
        if self.reduce_fn is not None and not isinstance(value, Failure):
            try:
                value = self.reduce_fn(value)
                refuse_awaitable(value, "reduce_fn")
            except BaseException as error:
                value = from_exception(position, "reduce", error)
        return Reduced(position, value)


def _position(part: Part) -> int:
    return part.position
