"""A breadcrumb for each partition: how far it came, in a file that survives its process.

The file is mapped into memory: a note costs a store and no system call, and the kernel keeps what
was stored when the process dies, however it dies. What has no fixed size (failures, values that
must not be made again) is appended behind.

::

    head: 8 int64 | marks: n + 1 float64 | states: n bytes | records: position, kind, size, data
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import struct
import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO

from at_once_dask.errors import AtOnceError
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.status import COLLECT, LEFT, OPEN, SKIPPED, is_final

# Places in the head.
START, SIZE, CURRENT, STOP, CLOSING, OVERDUE, THREAD = range(7)
UNKNOWN = -1  # as STOP
_HEAD = 8 * 8  # bytes
_RECORD = struct.Struct("=qBq")
FAILURE, VALUE = range(2)  # kinds of records
_STACK, _HERE, _WRITTEN = "stack", "here", "written"  # no partition's ids begin so


class BegunBeforeError(Exception):
    """Dask gave a partition to a worker for the second time: it came back at its old address."""


class Crumb:
    """How far a partition came, for whoever finds it.

    Parameters
    ----------
    start, n : int
        Position of the first input, and how many there are.
    path : str or None
        A file to be created; None keeps it in memory.

    Attributes
    ----------
    head : memoryview of int64
        START and SIZE as given; CURRENT, the position that is being worked on; STOP, the position
        behind the last one that was handled, UNKNOWN while inputs are begun; CLOSING, 1 while the
        values of all of them are pickled together; OVERDUE, 1 when the worker ended itself because
        the current input took too long; THREAD, the number of the thread that works on it.
    marks : memoryview of float64
        When each input began (``time.monotonic``); behind the last one, when that ended.
    states : memoryview of uint8
        See ``states``; LEFT for what was not begun.

    Raises
    ------
    BegunBeforeError
        When this partition was begun before, by a process that is gone.
    OSError
        When the file cannot be made: the disk is full.
    """

    __slots__ = ("_file", "head", "marks", "states")

    def __init__(self, start: int, n: int, path: str | None = None) -> None:
        marks, states = _HEAD, _HEAD + 8 * (n + 1)
        size = states + n
        self._file = -1
        buffer: Any = bytearray(size)
        if path is not None:
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            except FileExistsError:
                raise BegunBeforeError(path) from None
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._file, 0, size)  # or a full disk would end the process
                else:
                    os.write(self._file, bytes(size))
                buffer = mmap.mmap(self._file, size)
            except BaseException:
                self.close()
                os.unlink(path)
                raise
        view = memoryview(buffer)
        self.head = view[:marks].cast("q")
        self.marks = view[marks:states].cast("d")
        self.states = view[states:]
        # SIZE comes last: with it the crumb counts, and whoever looks at it must not be misled.
        self.marks[0] = time.monotonic()
        self.states[:] = bytes([LEFT]) * n
        self.states[0] = OPEN
        self.head[START], self.head[CURRENT], self.head[STOP] = start, start, UNKNOWN
        self.head[THREAD] = threading.get_ident()
        self.head[SIZE] = n

    def keep(self, position: int, kind: int, data: bytes) -> None:
        """Append a record; in memory there is nothing to keep it for."""
        if self._file >= 0:
            os.write(self._file, _RECORD.pack(position, kind, len(data)) + data)

    def close(self) -> None:
        """Give the descriptor back. The file stays, and the memory until nobody looks at it."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


@dataclass(frozen=True)
class Trace:
    """What a Crumb tells after its process has gone; crosses to the driver as plain data.

    Attributes
    ----------
    start, n, current, stop, closing, overdue, thread
        As in the head of the Crumb.
    marks : array of float
    states : bytes
    failures : dict of int to Failure
        By position.
    values : dict of int to bytes
        By position: what need not be made again.
    """

    start: int
    n: int
    current: int
    stop: int
    closing: bool
    overdue: bool
    thread: int
    marks: array[float]
    states: bytes
    failures: dict[int, Failure]
    values: dict[int, bytes]

    @property
    def running(self) -> bool:
        """Whether the process died inside an input, or with the values of all, and not between."""
        if self.closing or self.stop != UNKNOWN:
            return self.closing
        return not is_final(self.state)

    @property
    def state(self) -> int:
        """What was being done with the current input."""
        return self.states[self.current - self.start]

    @classmethod
    def read(cls, content: bytes) -> Trace | None:
        """From the bytes of the file; None when nothing had begun. A torn record is not there."""
        if len(content) < _HEAD:
            return None
        start, n, current, stop, closing, overdue, thread, _ = struct.unpack_from("=8q", content)
        if not n:
            return None
        states = _HEAD + 8 * (n + 1)
        marks = array("d", content[_HEAD:states])
        failures: dict[int, Failure] = {}
        values: dict[int, bytes] = {}
        for position, kind, data in _records(content[states + n :]):
            if kind == FAILURE:
                failures[position] = pickle.loads(data)
            else:
                values[position] = data
        return cls(
            start=start,
            n=n,
            current=current,
            stop=stop,
            closing=bool(closing),
            overdue=bool(overdue),
            thread=thread,
            marks=marks,
            states=content[states : states + n],
            failures=failures,
            values=values,
        )


def _records(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _RECORD.size <= len(content):
        position, kind, size = _RECORD.unpack_from(content, offset)
        data = content[offset + _RECORD.size : offset + _RECORD.size + size]
        if len(data) < size:
            return
        yield position, kind, data
        offset += _RECORD.size + size


@dataclass(frozen=True, slots=True)
class Step:
    """What a partition is at while it goes on.

    Attributes
    ----------
    position : int or None
        Of the current input; None where it is about several, or about none.
    state : int
        What is being done with it.
    since : float
        Since when (``time.monotonic``).
    failures : list of Failure
        Those before it, as many as were asked for.
    more : bool
        Whether there may be further ones.
    usual : float or None
        Seconds that those before it took which were not skipped (the mean); None without any.
    ended : bool
        It is at nothing any more: all that was to be handled is, and not delivered yet.
    """

    position: int | None
    state: int
    since: float
    failures: list[Failure]
    more: bool = False
    usual: float | None = None
    ended: bool = False


def _step(file: BinaryIO, limit: int) -> Step | None:
    start, n, current, stop, closing, *_ = _head(file)
    if not n:
        return None
    ended = stop != UNKNOWN and not closing
    offset = (current if stop == UNKNOWN else stop) - start
    begun, since = _mark(file, 0), _mark(file, offset)
    file.seek(_HEAD + 8 * (n + 1))
    states = file.read(n)
    state = COLLECT if closing else states[current - start]
    worked = offset - states.count(SKIPPED, 0, offset)
    content = file.read(limit + 1)
    records = _records(content[:limit])
    of_several = ended or closing or is_final(state) or (state == OPEN and n > 1)
    return Step(
        None if of_several else start + offset,
        state,
        since,
        [pickle.loads(data) for _, kind, data in records if kind == FAILURE],
        more=len(content) > limit,
        usual=(since - begun) / worked if worked else None,
        ended=ended,
    )


def _head(file: BinaryIO) -> tuple[int, ...]:
    return struct.unpack("=8q", file.read(_HEAD))


def _mark(file: BinaryIO, offset: int) -> float:
    file.seek(_HEAD + 8 * offset)
    (mark,) = struct.unpack("=d", file.read(8))
    return float(mark)


class Trail:
    """The folder of the crumbs of one run on one host, those of one worker among them.

    Worker, nanny and driver find it by what Dask tells them: it lies beside the worker's own
    directory.

    Parameters
    ----------
    base : str
        Dask's scratch space on this host.
    run, worker : str
        The run's id, the worker's address.
    """

    def __init__(self, base: str, run: str, worker: str) -> None:
        self.folder = os.path.join(base, f"at_once_dask-{run}")
        self._prefix = "".join(c if c.isalnum() else "_" for c in worker) + "."

    def create(self, id: str, start: int, n: int) -> Crumb:
        """A crumb for partition `id`; AtOnceError where none can be written."""
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            return Crumb(start, n, self._path(id))
        except OSError as error:
            raise AtOnceError(
                f"a worker cannot note how far it is: {error}; see that there is space in"
                f" {os.path.dirname(self.folder)} and that it can be written, and run the same"
                " again"
            ) from error

    @property
    def stack(self) -> str:
        """Path of the file for the worker's last stack."""
        return self._path(_STACK)

    def open(self) -> None:
        """Make it known that this worker leaves crumbs in this folder."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        os.close(os.open(self._here, os.O_WRONLY | os.O_CREAT, 0o600))

    def is_open(self) -> bool:
        """Whether the worker's crumbs can be seen from here."""
        return os.path.exists(self._here)

    @property
    def _here(self) -> str:
        return self._path(_HERE)

    def open_stack(self) -> TextIO:
        return open(self.stack, "a", encoding="utf-8", errors="replace")

    def read_stack(self) -> str:
        with contextlib.suppress(OSError):
            with open(self.stack, encoding="utf-8", errors="replace") as file:
                return file.read()
        return ""

    def written(self, number: int) -> str:
        """Path of the file with what was written to this file descriptor."""
        return self._path(f"{_WRITTEN}{number}")

    def traces(self) -> dict[str, bytes]:
        """What the crumbs hold, by partition id."""
        found = {}
        for id, path in self._paths():
            with contextlib.suppress(OSError), open(path, "rb") as file:
                found[id] = file.read()
        return found

    def current(self) -> Iterator[tuple[str, int, float]]:
        """Of each partition that goes on: its id, the current position, and since when."""
        for id, path in self._paths():
            with contextlib.suppress(OSError, struct.error), open(path, "rb") as file:
                head = _head(file)
                position = head[CURRENT] if head[STOP] == UNKNOWN else head[STOP]
                if head[SIZE] and (head[STOP] == UNKNOWN or head[CLOSING]):
                    yield id, position, _mark(file, position - head[START])

    def thread_of(self, id: str) -> int | None:
        """Which thread works on this partition; None when it has gone."""
        with contextlib.suppress(OSError, struct.error), open(self._path(id), "rb") as file:
            return _head(file)[THREAD]
        return None

    def step(self, id: str, limit: int) -> Step | None:
        """What partition `id` is at, with `limit` bytes of records; None when it has not begun.

        Made to be called while the worker writes: it may be a moment old, and raises nothing.
        """
        with contextlib.suppress(Exception):  # it is gone, or one half of it is older
            with open(self._path(id), "rb") as file:
                return _step(file, limit)
        return None

    def forget(self, ids: tuple[str, ...]) -> None:
        """These were delivered."""
        for id in ids:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(id))

    def clear(self) -> None:
        """Remove the crumbs of this worker, and the folder when it was the last."""
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, name))
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)

    def _path(self, id: str) -> str:
        return os.path.join(self.folder, self._prefix + id)

    def _names(self) -> list[str]:
        """Of all files of this worker."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        return [name for name in names if name.startswith(self._prefix)]

    def _paths(self) -> list[tuple[str, str]]:
        start = len(self._prefix)
        return [
            (name[start:], os.path.join(self.folder, name))
            for name in self._names()
            if not name.startswith((_STACK, _HERE, _WRITTEN), start)
        ]
