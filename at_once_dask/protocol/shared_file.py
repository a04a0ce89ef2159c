"""Large things that all workers of this host share: once, in a file that each of them maps.

The file has no name. Workers open it by the driver's descriptor, and it is gone as soon as that is
closed, however the driver ends. Each worker maps it privately: what is written into an array there
stays that worker's own.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

COPIES = 2  # of its size must be free in memory; else it lies on the disk


@dataclass(frozen=True)
class Parts:
    """Where the parts of a shared file are; crosses to workers of the same host."""

    path: str
    spans: tuple[tuple[int, int], ...]  # offset, size; in bytes

    def open(self) -> list[memoryview]:
        """The parts, each of which may be written to."""
        with open(self.path, "rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        return [mapped[offset : offset + size] for offset, size in self.spans]


@dataclass(frozen=True)
class OnHost:
    """Parts that the driver brings to each host of a borrowed cluster, into a file there."""

    spans: tuple[tuple[int, int], ...]

    def at(self, path: str) -> Parts:
        return Parts(path, self.spans)


@dataclass(frozen=True)
class Copies:
    """The parts themselves, where no file can be shared; crosses to any worker."""

    parts: tuple[bytes, ...]

    def open(self) -> list[memoryview]:
        """The parts, each of which may be written to."""
        return [memoryview(bytearray(part)) for part in self.parts]


class SharedFile:
    """A file without a name, with these parts in it.

    Parameters
    ----------
    parts : sequence of bytes or memoryview
    folder : str
        For the file, where there is too little memory.

    Raises
    ------
    OSError
        When there is no space.
    """

    def __init__(self, parts: Sequence[bytes | memoryview], folder: str) -> None:
        spans = spans_of(parts)
        self._file = _unnamed(sum(size for _, size in spans), folder)
        try:
            write(self._file, parts, spans)
        except BaseException:
            self.close()
            raise
        self.parts = Parts(f"/proc/{os.getpid()}/fd/{self._file}", spans)

    def close(self) -> None:
        """Forget it; workers that have it open keep it until they end."""
        os.close(self._file)


def _unnamed(size: int, folder: str) -> int:
    if psutil.virtual_memory().available > COPIES * size:
        return os.memfd_create("at_once_dask")
    return os.open(folder, os.O_RDWR | os.O_TMPFILE, 0o600)


def spans_of(parts: Sequence[bytes | memoryview]) -> tuple[tuple[int, int], ...]:
    """Where each part comes to lie; no page is of two parts."""
    spans, offset = [], 0
    for size in (memoryview(part).nbytes for part in parts):
        spans.append((offset, size))
        offset += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    return tuple(spans)


def write(file: int, parts: Sequence[bytes | memoryview], spans: Sequence[tuple[int, int]]) -> None:
    """Put the parts into the file with this descriptor."""
    for part, (offset, _) in zip(parts, spans, strict=True):
        _write(file, part, offset)


def _write(file: int, part: bytes | memoryview, offset: int) -> None:
    left = memoryview(part).cast("B")
    while left:
        n = os.pwrite(file, left, offset)  # 2 GB at most
        left, offset = left[n:], offset + n
