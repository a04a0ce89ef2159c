"""Prints and `logging` records of the functions go into the log, with their input.

In a worker, for the time of a run, ``sys.stdout`` and ``sys.stderr`` are objects that look who
writes. What threads of the run's inputs write goes to the log, a record a line, each in the file
before ``print`` returns: the next thing may be a segfault. What others write (Dask, other people's
tasks) goes where it went before. Nothing is done for an input that prints nothing: that another
input has started, which ends a line without an end, is noticed when its thread writes again, when
the partition ends, or when the worker looks after it (`tidy`).

There is no lock: while a thread holds one, the garbage collector may run somebody's destructor in
it, which logs, and waits for a lock of `logging` that another thread holds while it writes here.
What two threads may want is in dicts, sets and deques, from which one of them takes it in one step.

Only what Python writes comes this way: C code and subprocesses have the file descriptors (see
``descriptors``).
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, TextIO, TypeVar

from at_once_dask.logs import log_file, logging_records
from at_once_dask.protocol import lease
from at_once_dask.protocol.lease import Lease, Log
from at_once_dask.user_code.replaced import Replaced
from at_once_dask.user_code.text import cut, safe_repr

T = TypeVar("T")


class Descriptors(Protocol):
    """The file descriptors behind ``stdout`` and ``stderr``, while they are captured.

    `streams` lead where these did before.
    """

    streams: dict[str, TextIO]

    def catch_up(self) -> None: ...


LINE_LIMIT = 10_000  # characters of a line, or of a logging record; the rest is cut
TOGETHER = 100  # lines of one text are appended in one write, at most
BURST_BYTES = 2**18  # of records for a driver on another host, at once
BYTES_A_SECOND = 2**15  # and in the long run: its scheduler keeps a thousand messages

_STREAMS = {"stdout": "STDOUT", "stderr": "STDERR"}  # and the levels of their records

_here = threading.local()  # of each thread: page, run, busy
_pages: set[_Page] = set()  # those in use
_runs: set[str] = set()  # those of this worker whose output is captured
_posts: dict[str, _Post] = {}  # by run, where the driver is on another host
_streams: dict[str, Stream] = {}  # in place, by name
_descriptors: dict[str, Descriptors] = {}  # by run, where they are captured
_records: Replaced | None = None  # in place
_is_child = False  # of a worker: an input has forked it


def is_child() -> bool:
    """Whether this process is not the worker, but was forked by an input."""
    return _is_child


def begin(run_log: Log, descriptors: Descriptors | None = None) -> None:
    """A run begins in this worker; `descriptors` where these are captured, too."""
    global _is_child
    _is_child = False  # the worker itself was forked, too
    if not run_log.captures:
        return
    if not _runs:
        _install({} if descriptors is None else descriptors.streams)
    _runs.add(run_log.run)
    if descriptors is not None:
        _descriptors[run_log.run] = descriptors


def end(run_log: Log) -> None:
    """The run is over: after the last one, all is as it was before the first."""
    _close([page for page in list(_pages) if page.run_log.run == run_log.run])
    _runs.discard(run_log.run)
    _posts.pop(run_log.run, None)
    _descriptors.pop(run_log.run, None)
    if not _runs:
        _uninstall()


@contextlib.contextmanager
def of_run(run_log: Log, worker: str) -> Iterator[None]:
    """This thread works for a run: what is written while it is at no input yet belongs to that."""
    _here.run = run_log, worker
    try:
        yield
    finally:
        _here.run = None
        page = getattr(_here, "page", None)
        if page is not None:
            _close([page])
            _here.page = None  # or it would keep its input
            _send(run_log.run)


def catch_up(run_log: Log | None) -> None:
    """The current input is about to end: what was written to the file descriptors is its own."""
    descriptors = None if run_log is None else _descriptors.get(run_log.run)
    if descriptors is not None:
        descriptors.catch_up()


def end_lines() -> None:
    """End the lines of this thread: nobody writes here any more."""
    page = getattr(_here, "page", None)
    if page is not None:
        _close([page])


def settle(mine: Lease) -> None:
    """Bring what inputs of `mine` have written on lines without an end into the log."""
    if not _pages:
        return
    _close([page for page in list(_pages) if page.lease is mine])
    if mine.run_log is not None:
        _send(mine.run_log.run)


def page_of(run_log: Log, worker: str, mine: Lease | None) -> _Page:
    """Where lines go that do not come through Python's streams: they are of the current input."""
    return _Page(run_log, worker, mine)


def tidy(run: str) -> None:
    """From time to time: lines of inputs that are over, and those for a driver on another host."""
    _close([page for page in list(_pages) if page.is_over()])
    _send(run)


def _send(run: str) -> None:
    post = _posts.get(run)
    if post is not None:
        post.send()


class _Page:
    """Who writes in a thread, and the lines that have no end yet."""

    def __init__(self, run_log: Log, worker: str, mine: Lease | None) -> None:
        self.run_log = run_log
        self.worker = worker
        self.lease = mine
        self.thread = threading.current_thread()
        self.offset: int | None = None
        self.inp: Any = None
        if mine is not None:
            self.offset, self.inp = mine.named
        self.index = None if mine is None else mine.index(self.offset)
        # Once: it may take its time.
        self.shown = None if self.offset is None else safe_repr(self.inp)
        self._open: dict[str, str] = {}  # by level; who takes it out writes it
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}

    def is_of(self, run_log: Log, mine: Lease | None) -> bool:
        """Whether it is still the same input that writes."""
        return self in _pages and self.run_log is run_log and self.is_still(mine)

    def is_still(self, mine: Lease | None) -> bool:
        """Whether `mine` is at the same input as then."""
        return self.lease is mine and (mine is None or mine.named[0] == self.offset)

    def is_over(self) -> bool:
        """Whether nobody may come back to its open lines."""
        if self.run_log.run not in _runs or not self.thread.is_alive():
            return True
        mine = self.lease
        if mine is None:  # it was closed, or it is of no input
            return self.offset is not None
        return mine.named[0] != self.offset

    def write(self, level: str, text: str) -> None:
        """Put whole lines into the log, and keep the rest."""
        rest = self._open.pop(level, "")
        if len(rest) <= LINE_LIMIT or "\n" in text or "\r" in text:
            rest = self._note_lines(level, rest + text)
        self._open[level] = rest

    def _note_lines(self, level: str, text: str) -> str:
        """Note the lines that have an end, and return what is behind them."""
        lines = io.StringIO(text, newline="\n")  # a huge text is not to be split in memory
        rest = ""
        while few := list(islice(lines, TOGETHER)):
            if not few[-1].endswith("\n"):
                rest = _shortened(few.pop())
            if few:
                self.note(level, [last_state(line[:-1]) for line in few])
        return rest

    def write_bytes(self, level: str, data: bytes) -> None:
        if level not in self._decoders:
            self._decoders[level] = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self.write(level, self._decoders[level].decode(data))

    def end_lines(self) -> None:
        """End what has no end yet."""
        for level in _STREAMS.values():
            rest = self._open.pop(level, "")
            if last_state(rest).strip():  # blanks are what wipes a progress bar away
                self.note(level, [last_state(rest)])

    def has_progress(self) -> bool:
        """Whether a line that is written again and again has no end yet."""
        return any("\r" in rest for rest in self._open.values())

    def note(self, level: str, texts: list[str]) -> None:
        """Write records. What hinders that (a full disk) must not fail the input."""
        lines = "".join(
            log_file.line(
                log_file.entry(
                    level, self.run_log.run, self.index, self.shown, self.worker, _clean(text)
                )
            )
            for text in texts
        )
        try:
            self._put(lines)
        except OSError:
            _tell_original(level, texts)

    def _put(self, lines: str) -> None:
        if self.run_log.is_near:
            log_file.append_line(self.run_log.path, lines)
        elif _is_child:
            raise OSError("only the worker itself has a connection")
        else:
            _posts.setdefault(self.run_log.run, _Post(self)).add(lines)


class _Post:
    """Records on their way to a driver on another host: together, and no more than it can take."""

    def __init__(self, page: _Page) -> None:
        self._run_log, self._worker = page.run_log, page.worker
        self._lines: deque[str] = deque()
        self._room: float = BURST_BYTES
        self._missing: deque[None] = deque()  # one for each line
        self._sent = time.monotonic()

    def add(self, lines: str) -> None:
        for line in lines.splitlines(keepends=True):
            if len(line) > self._room:
                self._missing.append(None)
            else:
                self._room -= len(line)
                self._lines.append(line)

    def send(self) -> None:
        now = time.monotonic()
        self._room = min(BURST_BYTES, self._room + (now - self._sent) * BYTES_A_SECOND)
        self._sent = now
        lines = _taken(self._lines)
        missing = len(_taken(self._missing))
        if missing:
            lines.append(log_file.line(self._omission(missing)))
        if lines:
            self._run_log.send("".join(lines))

    def _omission(self, missing: int) -> dict[str, Any]:
        text = (
            f"{missing:,} lines of output are missing here: from another host than the"
            f" driver's at most {BYTES_A_SECOND // 1024} KiB a second go to the log"
        )
        return log_file.entry("WARNING", self._run_log.run, None, None, self._worker, text)


def _taken(things: deque[T]) -> list[T]:
    """All that is there; each goes to one of those who take at the same time."""
    taken: list[T] = []
    with contextlib.suppress(IndexError):
        taken.extend(things.popleft() for _ in range(len(things)))
    return taken


class Stream(io.TextIOBase):
    """In place of ``sys.stdout`` or ``sys.stderr``.

    Parameters
    ----------
    name : {"stdout", "stderr"}
    original : text stream
        Where it leads what is not the inputs'.
    before : text stream or None
        What was there before.
    has_descriptor : bool
        Whether what is written to the file descriptor 1 or 2 is captured, too.
    """

    def __init__(self, name: str, original: Any, before: Any, has_descriptor: bool) -> None:
        self.level = _STREAMS[name]
        self.original = original
        self.before = before
        self._has_descriptor = has_descriptor
        self._attribute = name
        self._buffer = _Buffer(self)

    def write(self, text: str) -> int:
        with _writing() as page:
            if page is not None:
                if not isinstance(text, str):
                    kind = type(text).__name__
                    raise TypeError(f"write() argument must be str, not {kind}")
                if not logging_records.writes_noted(sys._getframe(1)):
                    page.write(self.level, str.__str__(text))
                return len(text)
        written: int = self.original.write(text)
        return written

    def flush(self) -> None:
        """A line without an end stays where it is, but in a forked child, of whose end none tells.

        There a progress bar stays: it is flushed with each of its states.
        """
        if not _is_captured():
            self.original.flush()
        elif _is_child:
            with _writing() as page:
                if page is not None and not page.has_progress():
                    page.end_lines()

    def isatty(self) -> bool:
        return not _is_captured() and bool(self.original.isatty())

    def fileno(self) -> int:
        if self._has_descriptor and _is_captured():  # for a subprocess that is to write here
            return list(_STREAMS).index(self._attribute) + 1
        number: int = self.original.fileno()
        return number

    @property
    def name(self) -> str:
        return f"<{self._attribute}>"

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """It goes on: who closes it may be the garbage collector."""

    @property
    def closed(self) -> bool:
        return bool(self.original.closed)

    def detach(self) -> Any:
        return self._buffer

    def reconfigure(self, **options: Any) -> None:
        if not _is_captured():
            self.original.reconfigure(**options)

    @property
    def buffer(self) -> _Buffer:
        return self._buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8" if _is_captured() else self.original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return "backslashreplace" if _is_captured() else self.original.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __reduce_ex__(self, protocol: object) -> Any:
        return _current, (self._attribute,)


class _Buffer(io.BufferedIOBase):
    """The bytes below a Stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        with _writing() as page:
            if page is not None:
                read = bytes(memoryview(data))
                page.write_bytes(self._stream.level, read)
                return len(read)
        written: int = self._stream.original.buffer.write(data)
        return written

    def flush(self) -> None:
        if not _is_captured():
            self._stream.original.buffer.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """As the Stream."""

    @property
    def closed(self) -> bool:
        return self._stream.closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream.original.buffer, name)


def _write_record(level: str, text: str) -> None:
    """A `logging` record of an input."""
    with _writing() as page:
        if page is not None:  # its run may just have ended
            page.note(level, [text])


@contextlib.contextmanager
def _writing() -> Iterator[_Page | None]:
    """The page of this thread; None where it is no input's.

    What writing itself makes somebody print (a `repr`, a destructor) goes the old way.
    """
    whose = _whose()
    if whose is None:
        yield None
        return
    _here.busy = True
    try:
        page = _page(*whose)
        try:
            yield page
        finally:
            _pages.add(page)  # it may have been closed meanwhile
    finally:
        _here.busy = False


def _page(run_log: Log, worker: str, mine: Lease | None) -> _Page:
    page: _Page | None = getattr(_here, "page", None)
    if page is not None and page.is_of(run_log, mine):
        return page
    if page is not None:
        _close([page])
    page = _here.page = _Page(run_log, worker, mine)
    return page


def _close(pages: list[_Page]) -> None:
    for page in pages:
        _pages.discard(page)  # first: who writes in it meanwhile puts it back
        page.end_lines()
        page.inp = page.lease = None  # its thread may live on, and keep it


def _is_captured() -> bool:
    return _whose() is not None


def _whose() -> tuple[Log, str, Lease | None] | None:
    """Log, worker and input of what this thread writes; None where it is of no captured run."""
    if getattr(_here, "busy", False):
        return None
    mine = lease.own()
    if mine is None:
        run = getattr(_here, "run", None)
        if run is not None:
            run_log, worker = run
            return (run_log, worker, None) if run_log.captures else None
        if _is_dasks(threading.current_thread()):
            return None
        mine = lease.here()
    one = mine if mine is not None else next(iter(lease.running()), None)
    if one is None or one.run_log is None or not one.run_log.captures:
        return None
    return one.run_log, one.worker, mine


def _is_dasks(thread: threading.Thread) -> bool:
    """Whether it is the worker's own thread; all others are taken for the inputs'."""
    if _is_child:
        return False
    is_main = thread is threading.main_thread()
    return is_main or "Dask-" in thread.name or thread.name == "Profile"


def _current(name: str) -> Any:
    return getattr(sys, name)


def _install(streams: Mapping[str, TextIO]) -> None:
    global _records
    for name in _STREAMS:
        before = getattr(sys, name)
        original = streams.get(name, before)
        if original is None:  # nobody would see it; it is logged all the same
            original = open(os.devnull, "w")  # noqa: SIM115
        _streams[name] = Stream(name, original, before, name in streams)
        setattr(sys, name, _streams[name])
    _records = logging_records.noting(_is_captured, _write_record)


def _uninstall() -> None:
    """Somebody who has put something else there meanwhile keeps it: what is below it goes on."""
    for name, stream in _streams.items():
        if getattr(sys, name) is stream:
            setattr(sys, name, stream.before)
    _streams.clear()
    if _records is not None:
        _records.undo()


def _tell_original(level: str, texts: list[str]) -> None:
    name = "stdout" if level == "STDOUT" else "stderr"
    if name in _streams:
        with contextlib.suppress(OSError, ValueError):
            _streams[name].original.write("".join(f"{text}\n" for text in texts))


def last_state(line: str) -> str:
    """The last state of a line: each ``\\r`` begins it again.

    >>> last_state("1 %\\r2 %\\r")
    '2 %'
    """
    return line.rstrip("\r").rpartition("\r")[2]


def _shortened(rest: str) -> str:
    r"""No more of a line without an end than will be needed.

    Its last ``\r`` stays: nothing is overwritten before something follows. And so does one before
    its last state: it tells a progress bar.
    """
    state = last_state(rest)[: LINE_LIMIT + 1]
    ends_so = rest.endswith("\r")
    return ("\r" if "\r" in rest else "") + state + ("\r" if ends_so else "")


def _clean(text: str) -> str:
    """As the log can hold it."""
    return cut(text, LINE_LIMIT).encode(errors="backslashreplace").decode()


def _after_fork() -> None:
    """The child of an input writes its own lines."""
    global _is_child
    _is_child = True
    _pages.clear()
    _posts.clear()
    _descriptors.clear()
    _here.page = None
    _here.busy = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
