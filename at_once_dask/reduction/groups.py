"""In the driver: keys brought together, by their own == and hash; values stay pickled."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from at_once_dask.protocol.task import Group, Piece, Place
from at_once_dask.user_code import pickling

SPILL_BYTES = 256 * 2**20


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
