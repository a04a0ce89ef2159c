"""Output of C code and subprocesses goes to the log too, with the input that runs meanwhile.

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
from functools import cache
from typing import Any, TextIO

from at_once_dask.logs import streams
from at_once_dask.logs.log_file import RunLog
from at_once_dask.protocol import lease
from at_once_dask.protocol.progress_folder import ProgressFolder

_LEVELS = {1: "STDOUT", 2: "STDERR"}
_NAMES = {1: "stdout", 2: "stderr"}
CHUNK_BYTES = 2**16  # that are read at a time
LAST_BYTES = 2_000  # of what a dead worker wrote
_IN_MODIFY, _IN_CLOEXEC, _IN_NONBLOCK = 0x2, 0o2000000, 0o4000  # of Linux's <sys/inotify.h>
_KEEP_SIZE, _PUNCH_HOLE = 0x1, 0x2  # of <linux/falloc.h>
FREED_BYTES = 2**22  # that were read, before their room is given back
LONGEST_REST = 2**16  # bytes of a line without an end
LOOK_MILLISECONDS = 200  # between two looks where the kernel does not tell of changes
_READ = struct.Struct("=q")  # how much of the file has gone to the log


@dataclass
class _Written:
    """One of the two files, and how far it was read."""

    number: int  # of the descriptor
    saved: int  # where that led before
    file: int
    read: int  # a file with the number of bytes that were read
    offset: int = 0
    freed: int = 0  # so much of it takes no room any more
    rest: bytes = b""  # the beginning of a line
    page: Any = None  # of the input that wrote last

    def take(self, data: bytes, page: Any) -> None:
        if page is not self.page:
            self.end_line()
        self.page = page
        self.offset += len(data)
        first, *others = data.split(b"\n")
        self.rest += first
        if others:
            self._note([self.rest, *others[:-1]])
            self.rest = others[-1]
        self.rest = _shortened(self.rest)
        with contextlib.suppress(OSError):  # the disk is full: it is only for a death
            os.pwrite(self.read, _READ.pack(self.offset - len(self.rest)), 0)
        self._free()

    def _free(self) -> None:
        """Free the room of what is in the log; making the file shorter would race."""
        if self.offset - self.freed > FREED_BYTES:
            size = ctypes.c_int64(self.offset)
            _libc().fallocate(self.file, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(0), size)
            self.freed = self.offset

    def end_line(self) -> None:
        """End what has no end yet."""
        rest, self.rest = self.rest, b""
        if rest:
            self._note([rest])

    def _note(self, lines: list[bytes]) -> None:
        texts = [line.decode("utf-8", "backslashreplace") for line in lines]
        self.page.note(_LEVELS[self.number], [streams.last_state(text) for text in texts])


class Descriptors:
    """While it lasts, what is written to 1 and 2 goes to the log of a run.

    Parameters
    ----------
    run_log : RunLog
    worker : str
        The worker's address.
    progress_folder : ProgressFolder
        Where the files are made.

    Raises
    ------
    OSError
        When they cannot be made; all is as it was then.
    """

    def __init__(self, run_log: RunLog, worker: str, progress_folder: ProgressFolder) -> None:
        self._run_log = run_log
        self._worker = worker
        self._reading = threading.Lock()
        with contextlib.ExitStack() as undo:
            self._written = [_redirected(number, progress_folder, undo) for number in _LEVELS]
            self.streams = {
                _NAMES[written.number]: _stream(written.saved, undo) for written in self._written
            }
            self._wakes, self._wake = os.pipe()
            undo.callback(os.close, self._wakes)
            undo.callback(os.close, self._wake)
            self._watching = _watch([progress_folder.written(number) for number in _LEVELS], undo)
            self._thread = threading.Thread(
                target=self._follow, name="Dask-descriptors", daemon=True
            )
            self._thread.start()
            self._undo = undo.pop_all()

    def _follow(self) -> None:
        """Runs in a thread of its own until `close`."""
        poll = select.poll()
        poll.register(self._wakes, select.POLLIN)
        if self._watching is not None:
            poll.register(self._watching, select.POLLIN)
        is_over = False
        while not is_over:
            ready = dict(poll.poll(None if self._watching is not None else LOOK_MILLISECONDS))
            is_over = self._wakes in ready
            if self._watching in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._watching, CHUNK_BYTES)
            with self._reading:
                self._read_all()

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
        """The page of the only input that runs here, when it is one."""
        running = lease.running()
        mine = running[0] if len(running) == 1 else None
        if before is not None and before.is_still(mine):
            return before
        return streams.page_of(self._run_log, self._worker, mine)

    def close(self) -> None:
        """All is as it was before."""
        for written in self._written:
            os.dup2(written.saved, written.number)
        os.write(self._wake, b".")
        self._thread.join()
        for written in self._written:
            written.end_line()
            written.page = None  # it keeps the input, and the partition's progress file
        self._undo.close()


def _redirected(
    number: int, progress_folder: ProgressFolder, undo: contextlib.ExitStack
) -> _Written:
    path = progress_folder.written(number)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    undo.callback(os.close, file)
    read = os.open(f"{path}-read", os.O_RDWR | os.O_CREAT, 0o600)
    undo.callback(os.close, read)
    saved = os.dup(number)
    undo.callback(os.close, saved)
    os.dup2(file, number)
    undo.callback(os.dup2, saved, number)
    return _Written(number, saved, file, read)


def _stream(descriptor: int, undo: contextlib.ExitStack) -> TextIO:
    """Where the descriptor led before: for what is not the inputs'."""
    return undo.enter_context(
        open(descriptor, "w", buffering=1, errors="backslashreplace", closefd=False)
    )


def _shortened(rest: bytes) -> bytes:
    """No more of a line without an end than will be shown; of a progress bar the last state."""
    if len(rest) <= LONGEST_REST:
        return rest
    _, is_bar, state = rest.rpartition(b"\r")
    return (is_bar + state)[:LONGEST_REST]


def _watch(paths: list[str], undo: contextlib.ExitStack) -> int | None:
    """A descriptor that can be read from when one of the files has changed, until `undo`.

    None where the kernel has none left: a user may have 128 of them on many systems.
    """
    watching = _inotify()
    for path in paths if watching >= 0 else ():
        watch = _libc().inotify_add_watch(watching, os.fsencode(path), _IN_MODIFY)
        if watch < 0:
            return None
        undo.callback(_libc().inotify_rm_watch, watching, watch)
    return watching if watching >= 0 else None


@cache
def _inotify() -> int:
    """Kept by the process: to close it takes 16 ms (measured, Linux 6.18), and each run would."""
    return int(_libc().inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def last_words(progress_folder: ProgressFolder) -> str:
    """The last words of a process that has died: what it did not bring to the log any more."""
    return "".join(_last_words(progress_folder)).strip()


def _last_words(progress_folder: ProgressFolder) -> Iterator[str]:
    for number in _LEVELS:
        with contextlib.suppress(OSError, struct.error):
            path = progress_folder.written(number)
            with open(f"{path}-read", "rb") as read, open(path, "rb") as file:
                (offset,) = _READ.unpack(read.read() or _READ.pack(0))
                file.seek(max(offset, os.path.getsize(path) - LAST_BYTES))
                yield file.read().decode("utf-8", "backslashreplace")
