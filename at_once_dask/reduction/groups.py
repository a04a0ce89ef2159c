"""In the driver: keys brought together, by their own == and hash; values stay pickled."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from at_once_dask.protocol.task import Group, Numbers, Piece, Place
from at_once_dask.reduction import arrays
from at_once_dask.reduction.arrays import ITEM_BYTES, KeyNumbers
from at_once_dask.user_code import pickling

SPILL_BYTES = 256 * 2**20

_Places = tuple[Any, Any, Any]  # sorted by key: which piece, and offset and size in that
_BlobsOf = Callable[[int], list[bytes | Place | Numbers]]  # by the key's number


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
        self._numbers = KeyNumbers()
        self._first = array("q")  # number -> start of its first piece
        self._pieces: list[_Stored] = []

    def add(self, start: int, piece: Piece) -> None:
        """Take the piece of the partition that began at position `start`."""
        if not piece.sizes:  # no input of it gave anything
            return
        keys = pickling.loads(piece.keys)
        numbers = array("q", map(self._numbers.__getitem__, keys))
        self._first.extend([start] * (len(self._numbers) - len(self._first)))
        # Of equal keys the first in the list counts: 1 before True, say.
        later = np.take(self._first, numbers) > start
        for place in np.flatnonzero(later)[::-1].tolist():  # the first in the piece comes last
            self._first[numbers[place]] = start
            self._numbers.order[numbers[place]] = keys[place]
        self._pieces.append(_Stored(start, piece.data, numbers, piece.sizes, piece.code))
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
        by_key = arrays.grouping(numbers, len(self._numbers))
        places = which[by_key], offsets[by_key], sizes[by_key]
        stops = np.cumsum(counts)
        blobs_of = self._together(pieces, places, stops) or self._apart(pieces, places, stops)
        for number in np.argsort(first).tolist():
            yield Group(self._numbers.order[number], blobs_of(number))

    def _apart(self, pieces: list[_Stored], places: _Places, stops: Any) -> _BlobsOf:
        """Each key's blobs are looked up piece by piece."""
        which, offsets, sizes = places
        starts = [0, *stops.tolist()]

        def blobs_of(number: int) -> list[bytes | Place | Numbers]:
            mine = slice(starts[number], starts[number + 1])
            rows = zip(*(of[mine].tolist() for of in (which, offsets, sizes)), strict=True)
            return [self._find(pieces[n], offset, size) for n, offset, size in rows]

        return blobs_of

    @staticmethod
    def _together(pieces: list[_Stored], places: _Places, stops: Any) -> _BlobsOf | None:
        """Where all pieces are arrays of one kind they are sorted as one: a key is one blob."""
        data = [piece.data for piece in pieces if piece.code and isinstance(piece.data, bytes)]
        code, *others = {piece.code for piece in pieces}
        if len(data) < len(pieces) or others:
            return None
        which, offsets, sizes = places
        starts = [0, *np.cumsum(sizes)[stops - 1].tolist()]
        before = np.cumsum([0, *map(len, data)])[which]
        firsts, counts = (before + offsets) // ITEM_BYTES, sizes // ITEM_BYTES
        ends = np.cumsum(counts)
        sorted_places = np.repeat(firsts + counts - ends, counts)
        sorted_places += np.arange(ends[-1])
        raw = arrays.taken(np.frombuffer(b"".join(data), code), sorted_places)
        return lambda number: [(code, raw[starts[number] : starts[number + 1]])]

    def _find(self, piece: _Stored, offset: int, size: int) -> bytes | Place | Numbers:
        data = piece.data
        if isinstance(data, str):
            return Place(data, offset, size)
        if isinstance(data, bytes):
            read = data[offset : offset + size]
        else:
            assert self._file is not None
            read = os.pread(self._file.fileno(), size, data + offset)
        return (piece.code, read) if piece.code else read

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@dataclass(slots=True)
class _Stored:
    """A piece: where it began in the list, the numbers of its keys, and the sizes of their values.

    `data` are the values, one key's behind the other's: here, or the offset at which they begin in
    the file that they were spilled to, or the path of the file in which workers have left them.
    With a `code` they are an array of such numbers.
    """

    start: int
    data: bytes | int | str
    numbers: array[int]
    sizes: array[int]
    code: str

    def offsets(self) -> Any:
        sizes = np.array(self.sizes)
        return np.cumsum(sizes) - sizes
