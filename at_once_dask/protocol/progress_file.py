"""How far a partition came, in a file that outlives its process. Only this module knows its layout.

The worker maps the file into memory: a note costs a store and no system call, and the kernel keeps
what was stored when the process dies, however it dies. What has no fixed size (failures, values
that must not be made again) is appended.

Work stealing goes by the same file. The worker claims an input first and looks at the limit second;
whoever takes back sets the limit first and looks at the claim second, after a moment. So either the
claim is seen, and the limit moves behind it, or the limit is seen, and the input is not started.
When both happen at once the partition may end earlier than the limit says, never later: the outcome
says how far it came, and the driver trusts the outcome. Where a driver sees the file it needs no
message for that, and no answer from a worker that an input keeps busy.

::

    head: 8 int64 | marks: n + 1 float64 | states: n bytes | records: position, kind, size, data
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import struct
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.status import COLLECT, LEFT, OPEN, SKIPPED, STARTED, is_final, stage

PROCESS_SECONDS = 0.0005  # no process is started and gone in less

# Places in the head.
_START, _SIZE, _CURRENT, _STOP, _CLOSING, _THREAD, _LIMIT, _TAKEN = range(8)
_UNKNOWN = -1  # as _STOP
NO_LIMIT = sys.maxsize  # as _LIMIT
# Longer than any processor keeps a store to itself, when that is the claim that is asked for.
MOMENT_SECONDS = 50e-6
_HEAD = struct.Struct("=8q")
_MARK_BYTES = 8
_RECORD = struct.Struct("=qBq")
_FAILURE, _VALUE = range(2)  # kinds of records


class StartedBeforeError(Exception):
    """Dask gave a partition to a worker for the second time: it came back at its old address."""


class TakenBackError(Exception):
    """The driver took a partition back before it was started."""


class ProgressFile:
    """The progress of a partition, as its worker writes it.

    Parameters
    ----------
    start, n : int
        Position of the first input, and how many there are.
    path : str or None
        A file to be created; None keeps it in memory.

    Attributes
    ----------
    start : int
    states : memoryview of uint8
        The status of each input, by its place in the partition; LEFT for what was not started.
    deadline : float
        No further input is started past it (``time.monotonic``), except the first.

    Raises
    ------
    StartedBeforeError
        When a process that is gone had started this partition.
    TakenBackError
        When the driver has taken it back.
    OSError
        When the file cannot be made: the disk is full.
    """

    __slots__ = ("_file", "_head", "_marks", "deadline", "start", "states")

    def __init__(self, start: int, n: int, path: str | None = None) -> None:
        marks, states = _HEAD.size, _HEAD.size + _MARK_BYTES * (n + 1)
        self._file = -1
        view = memoryview(bytearray(states + n) if path is None else self._mapped(path, states + n))
        self.start = start
        self.deadline = float("inf")
        self._head = view[:marks].cast("q")
        # When each input started (``time.monotonic``); behind the last one, when that ended.
        self._marks = view[marks:states].cast("d")
        self.states = view[states:]
        self._marks[0] = time.monotonic()
        self.states[:] = bytes([LEFT]) * n
        self.states[0] = OPEN
        self._head[_START], self._head[_CURRENT], self._head[_STOP] = start, start, _UNKNOWN
        self._head[_THREAD], self._head[_LIMIT] = threading.get_ident(), NO_LIMIT
        # The size comes last: with it the file counts, and no reader must be misled.
        self._head[_SIZE] = n

    def _mapped(self, path: str, size: int) -> mmap.mmap:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except FileExistsError:
            raise (TakenBackError if _is_taken(path) else StartedBeforeError)(path) from None
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, size)  # or a full disk would end the process
            else:
                os.write(self._file, bytes(size))
            return mmap.mmap(self._file, size)
        except BaseException:
            self.close()
            os.unlink(path)
            raise

    @property
    def current(self) -> int:
        """The position that is being worked on."""
        return self._head[_CURRENT]

    @property
    def stage(self) -> str:
        """The stage of the current input."""
        return stage(self.states[self.current - self.start])

    @property
    def seconds(self) -> float:
        """For how long the current input has been worked on."""
        return time.monotonic() - self._marks[self.current - self.start]

    @property
    def stop(self) -> int:
        """The position behind the last input that was handled, when the partition has ended."""
        return self._head[_STOP]

    @property
    def limit(self) -> int:
        """No input at or behind this position may be started."""
        return self._head[_LIMIT]

    @limit.setter
    def limit(self, limit: int) -> None:
        self._head[_LIMIT] = limit

    def take_back(self) -> int:
        """Take back all that has not started; the first position taken back."""
        return _take_back(self._head, share=1.0)

    def begin(self, position: int) -> bool:
        """Claim the input at `position`; False when it was taken back or time is up.

        The order matters: claim first, look at the limit second.
        """
        now = time.monotonic()
        self._marks[position - self.start] = now  # before it is the current one: a nanny may look
        self._head[_CURRENT] = position
        in_time = now < self.deadline or position == self.start
        if position < self._head[_LIMIT] and in_time:
            self.states[position - self.start] = STARTED
            return True
        self._head[_STOP] = position
        return False

    def claims(self, ended: Callable[[], None]) -> Iterator[int]:
        """Claim all inputs, each when it is drawn, and give its place in the partition.

        `ended` is called when one has ended that took long enough to have started a process.

        As `begin`, and `end` behind the last. But that would cost an input that does nothing a
        fifth of its time, for the call and for looking up what is here at hand.
        """
        head, marks, states, start = self._head, self._marks, self.states, self.start
        monotonic, deadline, late = time.monotonic, self.deadline, float("inf")
        for offset in range(len(states)):
            marks[offset] = now = monotonic()
            if now > late:
                ended()
            late = now + PROCESS_SECONDS
            head[_CURRENT] = position = start + offset
            if position >= head[_LIMIT] or (now >= deadline and offset):
                head[_STOP] = position
                return
            states[offset] = STARTED
            yield offset
        self.end(start + len(states))

    def turn_to(self, position: int, state: int) -> None:
        """Start what is not claimed: the parts of a key are folded before that is claimed."""
        offset = position - self.start
        if self._head[_CURRENT] != position:
            self._marks[offset] = time.monotonic()
        self.states[offset] = state
        self._head[_CURRENT] = position

    def note(self, state: int) -> None:
        """Say what is being done with the current input."""
        self.states[self._head[_CURRENT] - self.start] = state

    def end(self, stop: int) -> None:
        """The input before position `stop` was the last; `begin` has said so when it said no."""
        self._marks[stop - self.start] = time.monotonic()
        self._head[_STOP] = stop

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Meanwhile the values of all inputs are pickled together."""
        self._head[_CLOSING] = 1
        yield
        self._head[_CLOSING] = 0

    def seconds_of(self, position: int) -> float:
        """How long the input took, or has taken."""
        offset = position - self.start
        return (self._marks[offset + 1] or time.monotonic()) - self._marks[offset]

    def marks(self, stop: int) -> array[float]:
        """When each input before position `stop` started, and when the last one ended."""
        return array("d", self._marks[: stop - self.start + 1])

    def keep_failure(self, failure: Failure, pickled: bytes) -> None:
        self._keep(failure.position, _FAILURE, pickled)

    def keep_value(self, position: int, pickled: bytes) -> None:
        """Keep a value that must not be made again if the process dies now."""
        self._keep(position, _VALUE, pickled)

    def _keep(self, position: int, kind: int, data: bytes) -> None:
        """Append a record; in memory there is nobody to keep it for."""
        if self._file >= 0:
            os.write(self._file, _RECORD.pack(position, kind, len(data)) + data)

    def close(self) -> None:
        """Nothing more is started. The file stays, and the memory until nobody looks at it."""
        if hasattr(self, "_head"):
            self._head[_STOP] = max(self._head[_STOP], self.start)
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _unstarted(head: memoryview[int]) -> int:
    """How many inputs have not started, and may."""
    if head[_STOP] != _UNKNOWN:
        return 0
    stop = min(head[_LIMIT], head[_START] + head[_SIZE])
    return max(0, stop - head[_CURRENT] - 1)


def _take_back(head: memoryview[int], share: float) -> int:
    """Take back this share of what has not started; the new limit, which is never raised."""
    n, limit = _unstarted(head), head[_LIMIT]
    if n:
        head[_LIMIT] = head[_CURRENT] + 1 + int(n * (1 - share))
        time.sleep(MOMENT_SECONDS)
        while head[_LIMIT] <= head[_CURRENT] and head[_LIMIT] < limit:
            head[_LIMIT] = min(limit, head[_CURRENT] + 1)
            time.sleep(MOMENT_SECONDS)
    return head[_LIMIT]


def unstarted(path: str) -> int | None:
    """How many inputs of this file's partition have not started, and may; None without a file."""
    try:
        with _mapped_head(path) as head:
            return _unstarted(head)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):  # it is just being made
        return 0


def take_back(path: str, share: float) -> int | None:
    """Take back this share of what has not started; the new limit, None where nothing goes on.

    Raises FileNotFoundError where the partition has not started.
    """
    try:
        with _mapped_head(path) as head:
            going_on = head[_SIZE] and head[_STOP] == _UNKNOWN
            return _take_back(head, share) if going_on else None
    except FileNotFoundError:
        raise
    except (OSError, ValueError):  # it is just being made
        return None


# The content of a file that stands where a partition is to be kept from starting.
TAKEN_BACK = _HEAD.pack(*[0] * _TAKEN, 1)


def look(path: str) -> Progress | None:
    """Read the file, without its records; raises where one half of it is older."""
    with open(path, "rb") as file:
        return Progress.read(_without_records(file))


def at_it_since(path: str) -> tuple[int, float] | None:
    """The position that the partition has come to, and since when; None when it does not go on.

    Two small reads, however many inputs it has: nannies ask ten times a second.
    """
    with open(path, "rb") as file:
        start, n, current, stop, closing, *_ = _HEAD.unpack(file.read(_HEAD.size))
        if not n or (stop != _UNKNOWN and not closing):
            return None
        reached = current if stop == _UNKNOWN else stop
        file.seek(_HEAD.size + _MARK_BYTES * (reached - start))
        (since,) = struct.unpack("=d", file.read(_MARK_BYTES))
    return reached, since


@contextlib.contextmanager
def _mapped_head(path: str) -> Iterator[memoryview[int]]:
    """The head of another process's file."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), _HEAD.size) as mapped:
        with memoryview(mapped) as view, view.cast("q") as head:
            yield head


def _is_taken(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(_HEAD.size)
    return len(head) == _HEAD.size and bool(_HEAD.unpack(head)[_TAKEN])


@dataclass(frozen=True)
class Progress:
    """The content of a progress file, also after its process has gone.

    Attributes
    ----------
    start, n : int
        Position of the first input, and how many there are.
    current : int
        The position that is, or was, worked on.
    stop : int
        The position behind the last input that was handled, -1 while inputs are started.
    closing : bool
        Whether the values of all inputs were being pickled together.
    thread : int
        The number of the thread that worked on it.
    marks : array of float
        When each input started (``time.monotonic``); behind the last one, when that ended.
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
    thread: int
    marks: array[float]
    states: bytes
    failures: dict[int, Failure]
    values: dict[int, bytes]

    @property
    def running(self) -> bool:
        """Whether the process was inside an input, or pickled the values of all; not between."""
        if self.closing or self.ended:
            return self.closing
        return not is_final(self.state)

    @property
    def state(self) -> int:
        """The status of the current input."""
        return self.states[self.current - self.start]

    @property
    def ended(self) -> bool:
        """Whether all that was to be handled is."""
        return self.stop != _UNKNOWN and not self.closing

    @property
    def doing(self) -> int:
        """The status of what is being done, be it with one input or with all."""
        return COLLECT if self.closing else self.state

    @property
    def position(self) -> int | None:
        """The input that is being worked on; None where it is about several, or about none."""
        of_several = self.closing or (self.state == OPEN and self.n > 1)
        return None if self.ended or of_several or is_final(self.state) else self.current

    @property
    def since(self) -> float:
        """Since when the partition is at what it is doing (``time.monotonic``)."""
        return self.marks[self.reached - self.start]

    @property
    def usual(self) -> float | None:
        """Seconds that inputs took which were not skipped (the mean); None before there is one."""
        offset = self.reached - self.start
        worked = offset - self.states.count(SKIPPED, 0, offset)
        return (self.since - self.marks[0]) / worked if worked else None

    @property
    def reached(self) -> int:
        """The position up to which the partition has come."""
        return self.current if self.stop == _UNKNOWN else self.stop

    @classmethod
    def read(cls, content: bytes) -> Progress | None:
        """From the bytes of the file; None when nothing was started. A torn record is not there."""
        if len(content) < _HEAD.size:
            return None
        start, n, current, stop, closing, thread, _, _ = _HEAD.unpack_from(content)
        if not n:
            return None
        states = _HEAD.size + _MARK_BYTES * (n + 1)
        failures: dict[int, Failure] = {}
        values: dict[int, bytes] = {}
        for position, kind, data in _records(content[states + n :]):
            if kind == _FAILURE:
                failures[position] = pickle.loads(data)
            else:
                values[position] = data
        return cls(
            start=start,
            n=n,
            current=current,
            stop=stop,
            closing=bool(closing),
            thread=thread,
            marks=array("d", content[_HEAD.size : states]),
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


def _without_records(file: BinaryIO) -> bytes:
    """The part of a progress file that is of a fixed size: so much is read at each look."""
    head = file.read(_HEAD.size)
    n = _HEAD.unpack(head)[_SIZE]
    return head + file.read(_MARK_BYTES * (n + 1) + n)
