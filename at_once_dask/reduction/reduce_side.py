"""From pieces to the result: keys brought together in the driver, folded by ``foldby`` on workers.

The driver brings together what belongs to a key, by the key's own ``==`` and ``hash``, without
opening the values. Then keys are inputs like any others: cut into partitions, leased to workers,
where the bag's ``foldby`` folds the pieces of each key and ``reduce_fn`` is mapped over them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask.bag import Bag

from at_once_dask.protocol.failure import Failure, from_exception
from at_once_dask.protocol.lease import Lease
from at_once_dask.protocol.return_values import refuse_awaitable
from at_once_dask.protocol.status import REDUCE
from at_once_dask.reduction.map_side import Piece, Place, combine
from at_once_dask.user_code import pickling

if TYPE_CHECKING:
    from at_once_dask.report.ledger import Ledger

SPILL_BYTES = 256 * 2**20


class Group(NamedTuple):
    """One key as an input of the reduction: the key and the blobs of its pieces, in order."""

    key: Any
    blobs: list[bytes | Place]

    @property
    def n_bytes(self) -> int:
        return sum(blob.size if isinstance(blob, Place) else len(blob) for blob in self.blobs)


class Groups:
    """The driver's collection of pieces: which blob belongs to which key.

    Keys meet in one ``dict``, so what is one key is what Python says is one key, for any type
    and whichever process made it. Values stay pickled: where the workers have put them, or in
    memory up to `SPILL_BYTES`, and in a temporary file without a name past it.
    """

    def __init__(self, spill_bytes: int = SPILL_BYTES) -> None:
        self._spill_bytes = spill_bytes
        self._held = 0  # bytes in memory
        self._file: IO[bytes] | None = None
        self._numbers = _Numbers()
        self._first = array("q")  # number -> start of its first piece
        self._pieces: list[_Stored] = []

    def add(self, start: int, piece: Piece) -> None:
        """Take the piece of the partition that began at position `start`."""
        keys = pickling.loads(piece.keys)
        numbers = array("q", map(self._numbers.__getitem__, keys))
        self._first.extend([start] * (len(self._numbers) - len(self._first)))
        # Of equal keys the first in the list counts: 1 before True, say.
        later = np.take(self._first, numbers) > start
        for place in np.flatnonzero(later)[::-1].tolist():  # the first in the piece comes last
            self._first[numbers[place]] = start
            self._numbers.order[numbers[place]] = keys[place]
        self._pieces.append(_Stored(start, piece.data, numbers, piece.sizes))
        self._held += len(piece.data) if isinstance(piece.data, bytes) else 0
        if self._held > self._spill_bytes:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        for piece in self._pieces:
            if isinstance(piece.data, bytes):
                offset = self._file.tell()
                self._file.write(piece.data)
                piece.data = offset
        self._file.flush()  # it is read by its number
        self._held = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Group]:
        """The keys in order of first appearance, each with its blobs in input order."""
        if not self._pieces:
            return
        pieces = sorted(self._pieces, key=lambda piece: piece.start)
        numbers = np.concatenate([piece.numbers for piece in pieces])
        sizes = np.concatenate([piece.sizes for piece in pieces])
        offsets = np.concatenate([piece.offsets() for piece in pieces])
        which = np.repeat(np.arange(len(pieces)), [len(piece.sizes) for piece in pieces])
        _, first, counts = np.unique(numbers, return_index=True, return_counts=True)
        by_key = np.argsort(numbers, kind="stable")
        which, offsets, sizes = which[by_key], offsets[by_key], sizes[by_key]
        stops = np.cumsum(counts)
        for number in np.argsort(first).tolist():
            mine = slice(stops[number] - counts[number], stops[number])
            places = zip(*(of[mine].tolist() for of in (which, offsets, sizes)), strict=True)
            blobs = [self._find(pieces[n].data, offset, size) for n, offset, size in places]
            yield Group(self._numbers.order[number], blobs)

    def _find(self, data: bytes | int | str, offset: int, size: int) -> bytes | Place:
        if isinstance(data, bytes):
            return data[offset : offset + size]
        if isinstance(data, str):
            return Place(data, offset, size)
        assert self._file is not None
        return os.pread(self._file.fileno(), size, data + offset)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Kept:
    """Groups that outlive their run, to be reduced again; their files go when this goes.

    Parameters
    ----------
    groups : Groups
    ledger : Ledger
        What became of the inputs.
    """

    def __init__(self, groups: Groups, ledger: Ledger) -> None:
        self.groups = groups
        self.ledger = ledger
        self._folders: list[str] = []
        weakref.finalize(self, _discard, groups, self._folders, os.getpid())

    def add(self, folder: str | None) -> None:
        """Take over a folder with values that workers have put into files."""
        if folder is not None:
            self._folders.append(folder)

    @property
    def is_whole(self) -> bool:
        """Whether all of it is there: the folders are in the own cluster's, which may be closed."""
        return all(map(os.path.isdir, self._folders))


def _discard(groups: Groups, folders: list[str], owner: int) -> None:
    if os.getpid() != owner:
        return  # a child that was forked: all this is its parent's
    groups.close()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


class _Numbers(dict[Any, int]):
    """Gives each key that it has not seen the next number; `order` has the keys by number."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[Any] = []

    def __missing__(self, key: Any) -> int:
        number = self[key] = len(self.order)
        self.order.append(key)
        return number


@dataclass(slots=True)
class _Stored:
    """A piece: where it began in the list, the numbers of its keys, and the sizes of their values.

    `data` are the values, one key's behind the other's: here, or the offset at which they begin in
    the file that they were spilled to, or the path of the file in which workers have left them.
    """

    start: int
    data: bytes | int | str
    numbers: array[int]
    sizes: array[int]

    def offsets(self) -> Any:
        sizes = np.array(self.sizes)
        return np.cumsum(sizes) - sizes


@dataclass(slots=True)
class Part:
    """What pieces give for one key, on its way through ``foldby``."""

    position: int
    group: Group
    lease: Lease

    def begin(self) -> None:
        """This key is being worked on: the one to blame from here on."""
        self.lease.turn_to(self.position, REDUCE)
        self.lease.subject = self

    @property
    def offset(self) -> int:
        return self.position - self.lease.start

    @property
    def inp(self) -> Any:
        return self.group.key

    def values(self) -> Iterator[Any]:
        """Of each piece: its list of values, its combined value, or a Failure."""
        return map(self._value, self.group.blobs)

    def _value(self, blob: bytes | Place) -> Any:
        try:
            return blob.load() if isinstance(blob, Place) else pickling.loads(blob)
        except BaseException as error:
            return from_exception(self.position, "reduce", error)


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
            return pickling.dumps(self.value)
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
        values = part.values()
        value = next(values) if total.part is None else total.value
        for more in values:
            value = self._join(value, more)
        return Total(part, value)

    def merge(self, total: Total, other: Total) -> Total:
        if total.part is None:
            return other
        return Total(total.part, self._join(total.value, other.value))

    def _join(self, value: Any, more: Any) -> Any:
        if self.combine_fn is not None:
            return combine(self.combine_fn, value, more)
        if type(value) is Failure or type(more) is Failure:
            return value if type(value) is Failure else more
        value.extend(more)
        return value

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
