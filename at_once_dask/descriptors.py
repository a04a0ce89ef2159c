"""What C code and subprocesses write: to the log too, with the input that runs meanwhile.

In an own worker, for the time of a run, the file descriptors 1 and 2 are files. A pipe would do but
for one thing: who reads it needs the GIL, and C code that writes may hold it. A thread is woken by
the kernel when something was written (`inotify`), and what a dead worker has written last is still
in the file: its nanny reads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from at_once_dask import lease, output
from at_once_dask.crumb import Trail
from at_once_dask.journal import Book

_LEVELS = {1: "STDOUT", 2: "STDERR"}
_NAMES = {1: "stdout", 2: "stderr"}
CHUNK_BYTES = 2**16  # that are read at a time
LAST_BYTES = 2_000  # of what a dead worker wrote
_IN_MODIFY, _IN_CLOEXEC = 0x2, 0o2000000  # of Linux's <sys/inotify.h>
_READ = struct.Struct("=q")  # how much of the file has gone to the log


@dataclass
class _Written:
    """One of the two files, and how far it was read."""

    level: str
    saved: int  # where the descriptor led before
    file: int
    read: int  # a file with the number of bytes that were read
    offset: int = 0
    rest: bytes = b""  # the beginning of a line
    page: Any = None  # of the input that wrote last

    def take(self, data: bytes, page: Any) -> None:
        if page is not self.page:
            self.end_line()
        self.page = page
        self.offset += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        self._note(lines)
        os.pwrite(self.read, _READ.pack(self.offset - len(self.rest)), 0)

    def end_line(self) -> None:
        """What has no end yet has it now."""
        rest, self.rest = self.rest, b""
        if rest:
            self._note([rest])

    def _note(self, lines: list[bytes]) -> None:
        if lines:
            texts = [line.decode("utf-8", "backslashreplace") for line in lines]
            self.page.note(self.level, [output.last_state(text) for text in texts])


class Descriptors:
    """While it lasts, what is written to 1 and 2 goes to the log of a run.

    Parameters
    ----------
    book : Book
    worker : str
        The worker's address.
    trail : Trail
        Where the files are made.
    """

    def __init__(self, book: Book, worker: str, trail: Trail) -> None:
        self._book = book
        self._worker = worker
        self._written = [self._redirect(number, trail) for number in _LEVELS]
        self.streams: dict[str, TextIO] = {
            _NAMES[number]: open(  # noqa: SIM115
                written.saved, "w", buffering=1, errors="backslashreplace", closefd=False
            )
            for number, written in zip(_LEVELS, self._written, strict=True)
        }
        self._reading = threading.Lock()
        self._wakes, self._wake = os.pipe()
        paths = [trail.written(number) for number in _LEVELS]
        self._thread = threading.Thread(
            target=self._follow, args=(_watch(paths),), name="Dask-descriptors", daemon=True
        )
        self._thread.start()

    def _redirect(self, number: int, trail: Trail) -> _Written:
        path = trail.written(number)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        read = os.open(f"{path}-read", os.O_RDWR | os.O_CREAT, 0o600)
        saved = os.dup(number)
        os.dup2(file, number)
        return _Written(_LEVELS[number], saved, file, read)

    def _follow(self, watching: int) -> None:
        """Runs in a thread of its own until `close`."""
        poll = select.poll()
        poll.register(self._wakes, select.POLLIN)
        poll.register(watching, select.POLLIN)
        is_over = False
        while not is_over:
            ready = dict(poll.poll())
            is_over = self._wakes in ready
            if watching in ready:
                os.read(watching, CHUNK_BYTES)
            with self._reading:
                self._read_all()
        os.close(watching)

    def catch_up(self) -> None:
        """The current input ends: what has been written by now is its own."""
        with self._reading:
            self._read_all()
            for written in self._written:
                written.end_line()

    def _read_all(self) -> None:
        for written in self._written:
            while data := os.pread(written.file, CHUNK_BYTES, written.offset):
                written.take(data, self._current_page(written.page))

    def _current_page(self, before: Any) -> Any:
        """Of the only input that runs here, when it is one."""
        running = lease.running()
        mine = running[0] if len(running) == 1 else None
        if before is not None and before.is_still(mine):
            return before
        return output.page_of(self._book, self._worker, mine)

    def close(self) -> None:
        """All is as it was before."""
        for number, written in zip(_LEVELS, self._written, strict=True):
            os.dup2(written.saved, number)
        os.write(self._wake, b".")
        self._thread.join()
        for stream in self.streams.values():
            stream.close()
        for written in self._written:
            written.end_line()
            written.page = None  # it keeps the input, and the partition's crumb
            for file in (written.file, written.saved, written.read):
                os.close(file)
        os.close(self._wakes)
        os.close(self._wake)


def _watch(paths: list[str]) -> int:
    """A descriptor that can be read from when one of the files has changed."""
    libc = ctypes.CDLL(None, use_errno=True)
    watching = libc.inotify_init1(_IN_CLOEXEC)
    for path in paths:
        if watching < 0 or libc.inotify_add_watch(watching, os.fsencode(path), _IN_MODIFY) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    return int(watching)


def last_words(trail: Trail) -> str:
    """What a process that has died wrote last, and did not bring to the log any more."""
    return "".join(_last_words(trail)).strip()


def _last_words(trail: Trail) -> Iterator[str]:
    for number in _LEVELS:
        with contextlib.suppress(OSError, struct.error):
            path = trail.written(number)
            with open(f"{path}-read", "rb") as read, open(path, "rb") as file:
                (offset,) = _READ.unpack(read.read() or _READ.pack(0))
                file.seek(max(offset, os.path.getsize(path) - LAST_BYTES))
                yield file.read().decode("utf-8", "backslashreplace")
