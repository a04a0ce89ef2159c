"""One failure, as plain data made where it happened: bounded in size, safe to send.

Nothing in here may raise: it describes objects whose ``repr``, ``str`` and pickling may be broken.
"""

from __future__ import annotations

import bdb
import contextlib
import linecache
import os
import site
import subprocess
import sys
import sysconfig
import traceback
from array import array
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from at_once_dask.user_code import notebook

if TYPE_CHECKING:
    from types import TracebackType

CHAIN_LIMIT = 5  # errors, each the cause of the one before
MESSAGE_LIMIT = 2_000  # characters
TRACEBACK_LIMIT = 20_000  # characters
REPR_LIMIT = 200  # characters, the log's
REPR_DEPTH = 6  # of containers in containers
NAME_LIMIT = 200  # characters of a type's name
WHERE_LIMIT = 500  # characters; the end tells more
WORDS_LIMIT = 1_000  # characters of what a program wrote
LAST_LINE_LIMIT = 200  # characters of the last line of it

_NO_TERMINAL = (
    "a debugger finds no terminal in a worker; take the report of the run and call"
    " report.replay(position), which runs the input in your own process, where breakpoint() stops"
)
_NO_MAIN_THREAD = (
    "inputs run in a thread of their worker; to limit the time of an input, write"
    " run(inp_list, check_inp, process_inp, timeout=60) instead"
)

Same = tuple[str, str, str, str]  # what equal failures have in common

_TELLS_NOTHING = ("bdb.py", "cloudpickle.py", "copyreg.py", "pickle.py")  # of what went wrong

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_NOT_THE_USERS = tuple(
    path + os.sep
    for path in {
        *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
)


@dataclass(slots=True)
class Failure:
    """What went wrong with one input, or with one key in the reduction.

    Crosses from the worker to the driver; the input or key itself stays with the driver,
    which knows it by `position`.

    Attributes
    ----------
    position : int
        Of the input in the order of use (stage ``reduce``: of the key, by first appearance).
    stage : str
        ``check``, ``process``, ``verify``, ``reduce``, ``send`` or ``collect``.
    kind : str
        ``exception``, ``crash``, ``memory`` or ``timeout``.
    error, message, traceback : str
        The exception's type name, its text and its traceback; of a death its signal or exit code,
        what is known of it, and the stack where one could be had.
    where : str
        The innermost place in the user's own code, ``file:line in function``; of a notebook's
        cell ``In[3]:line in function``.
    worker : str
        The worker's address; empty for what failed in the driver.
    seconds : float
        How long this attempt took.
    attempts : int
        How many attempts were made.
    exit : str or None
        Signal name or exit code of a death.
    final : bool
        A further attempt would not show it any more, and what it says would still be so.
    """

    position: int
    stage: str
    kind: str
    error: str
    message: str
    traceback: str = ""
    where: str = ""
    worker: str = ""
    seconds: float = 0.0
    attempts: int = 1
    exit: str | None = None
    final: bool = False

    def __post_init__(self) -> None:
        """Whatever made them, its texts can be written anywhere."""
        self.error, self.message = sound(self.error), sound(self.message)
        self.traceback, self.where = sound(self.traceback), sound(self.where)

    @property
    def cause(self) -> Same:
        """Failures are equal when they have this in common."""
        return self.kind, self.stage, self.error, self.where

    @property
    def what(self) -> str:
        """The error, and where it came from, for people."""
        place = f" at {self.where}" if self.where else ""
        return f"{self.error} in {self.stage}{place}"

    def line(self) -> str:
        """One line for people: where, what, why."""
        return f"{self.what}: {first_line(self.message)}"


def from_exception(position: int, stage: str, error: BaseException) -> Failure:
    """Describe an exception that user code raised at `stage`."""
    words = _words_of_program(error)
    return Failure(
        position=position,
        stage=stage,
        kind="exception",
        error=_name(error),
        message=cut(_message(error, words), MESSAGE_LIMIT),
        traceback=_traceback_text(error, words),
        where=_where(error),
    )


def from_answer(position: int, stage: str, message: str) -> Failure:
    """Describe a wrong return value: nothing was raised, so there is no traceback."""
    return Failure(position, stage, "exception", "TypeError", cut(message, MESSAGE_LIMIT))


@cache
def is_users_file(filename: str) -> bool:
    """Whether `filename` is outside the standard library, site-packages and this package."""
    if not os.path.isabs(filename):  # no file: a notebook's cell, standard input
        return not filename.startswith("<frozen ")
    path = os.path.abspath(filename)
    return not path.startswith(_NOT_THE_USERS) and not is_ours(path)


def is_ours(filename: str) -> bool:
    """Whether `filename` is of this package; its demonstration counts as a user's program."""
    return filename.startswith(_HERE) and not filename.endswith("__main__.py")


def safe_repr(value: object, limit: int = REPR_LIMIT) -> str:
    """``repr(value)`` cut at `limit` characters; never raises, never builds a huge text.

    >>> safe_repr(["x"] * 3)
    "['x', 'x', 'x']"
    """
    text = ""
    try:
        for piece in _pieces(value, limit, REPR_DEPTH):
            text += piece
            if len(text) > limit:
                break
        return cut(sound(text), limit)
    except BaseException as error:
        return cut(_without_repr(value, error), limit)


def sound(text: str) -> str:
    """Without half surrogate pairs, as of file names that are not UTF-8: these break a print."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """What ``print`` can write here: with escapes for what stdout or stderr has no letters for."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # None, or somebody else's idea of a stream
            if stream.errors in ("strict", "surrogateescape"):
                text = text.encode(stream.encoding, "backslashreplace").decode(stream.encoding)
    return text


def cut(text: str, limit: int) -> str:
    """`text`, shortened to `limit` characters with an ellipsis in the last one."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def cut_start(text: str, limit: int) -> str:
    """`text`, shortened to `limit` characters with an ellipsis in the first one."""
    return text if len(text) <= limit else "…" + text[1 - limit :]


def first_line(text: str) -> str:
    return text.split("\n", 1)[0]


class _Text(str):
    """Stands in a repr as it is."""

    __slots__ = ()
    __repr__ = str.__str__


_COLON = _Text(": ")
_OF_NAMEDTUPLE = namedtuple("_OF_NAMEDTUPLE", "").__repr__.__code__  # all of them have this one


def _pieces(value: Any, room: int, depth: int) -> Iterator[str]:
    """The repr bit by bit: of a large container no more is made than there is room for."""
    opened = _opened(value)
    if opened is None:
        yield _leaf(value, room)
        return
    opening, items, closing = opened
    yield opening
    for number, parts in enumerate(items if depth else [(_Text("..."),)]):
        if number:
            yield ", "
        for part in parts:
            yield from _pieces(part, room, depth - 1)
    yield closing


def _opened(value: Any) -> tuple[str, Iterable[tuple[Any, ...]], str] | None:
    """What it begins with, its items and what it ends with; None for what is no container.

    One whose class has a ``__repr__`` of its own is none. No method of its class is called.
    """
    kind = type(value)
    shown: Any = kind.__repr__
    if shown is list.__repr__:
        return "[", zip(list.__iter__(value)), "]"
    if shown is tuple.__repr__:
        return "(", zip(tuple.__iter__(value)), ",)" if tuple.__len__(value) == 1 else ")"
    if shown is dict.__repr__:
        return "{", _entries(dict.items(value)), "}"
    if shown is OrderedDict.__repr__ and dict.__len__(value):
        # As Python writes it from 3.12 on.
        return f"{kind.__name__}({{", _entries(OrderedDict.items(value)), "})"
    if shown is defaultdict.__repr__:
        return f"{kind.__name__}({value.default_factory!r}, {{", _entries(dict.items(value)), "})"
    if shown is deque.__repr__:
        most = deque.maxlen.__get__(value)
        closing = "])" if most is None else f"], maxlen={most})"
        return f"{kind.__name__}([", zip(deque.__iter__(value)), closing
    if shown is set.__repr__ or shown is frozenset.__repr__:
        return _opened_set(value, kind)
    if getattr(shown, "__code__", None) is _OF_NAMEDTUPLE:
        named = zip(map(_label, kind._fields), tuple.__iter__(value), strict=True)
        return f"{kind.__name__}(", named, ")"
    if is_dataclass(kind) and _is_generated(shown):
        names = [field.name for field in fields(kind) if field.repr]
        return (
            f"{kind.__qualname__}(",
            ((_label(name), getattr(value, name)) for name in names),
            ")",
        )
    return None


def _opened_set(value: Any, kind: type) -> tuple[str, Iterable[tuple[Any, ...]], str] | None:
    base: Any = set if issubclass(kind, set) else frozenset
    if not base.__len__(value):
        return None
    opening, closing = ("{", "}") if kind is set else (f"{kind.__name__}({{", "})")
    return opening, zip(base.__iter__(value)), closing


def _entries(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, ...]]:
    return ((key, _COLON, value) for key, value in items)


def _label(name: str) -> _Text:
    return _Text(f"{name}=")


def _is_generated(shown: Any) -> bool:
    """Whether `dataclass` made this ``__repr__``: out of a text, and guarded against recursion."""
    code = getattr(getattr(shown, "__wrapped__", None), "__code__", None)
    return code is not None and code.co_filename == "<string>"


def _leaf(value: Any, room: int) -> str:
    """The repr of what is no container; of what is one in a row of many, of its beginning."""
    try:
        for base in (str, bytes, bytearray, array):
            if issubclass(type(value), base) and base.__len__(value) > room:
                value = base.__getitem__(value, slice(room))
        return repr(value)
    except BaseException as error:
        return _without_repr(value, error)


def _without_repr(value: object, error: BaseException) -> str:
    return f"<{_name(value)} object whose repr raised {_name(error)}>"


def _name(value: object) -> str:
    """Of its type, whatever a metaclass makes of that."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return cut(name, NAME_LIMIT)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:
        return f"<str of this exception raised {_name(broken)}>"


def _message(error: BaseException, words: str) -> str:
    """Its text, with what more is known of this kind of exception."""
    text = _text(error)
    try:
        if isinstance(error, AssertionError) and not text:
            return _failing_line(error)
        if isinstance(error, bdb.BdbQuit):
            return _NO_TERMINAL
        if isinstance(error, ValueError) and "signal only works in main thread" in text:
            return f"{text}; {_NO_MAIN_THREAD}"
    except BaseException:
        return text
    if not words:
        return text
    last = cut_start(words.splitlines()[-1], LAST_LINE_LIMIT)
    rest = f"\n{words}" if "\n" in words else ""
    text = cut(text, MESSAGE_LIMIT // 4).removesuffix(".")
    return f"{text}; it ended with: {last}{rest}"


def _failing_line(error: BaseException) -> str:
    """The line of a bare ``assert``."""
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    if tb is None:
        return ""
    code = tb.tb_frame.f_code
    line = linecache.getline(code.co_filename, tb.tb_lineno, tb.tb_frame.f_globals).strip()
    return line if line.startswith("assert") else ""


_OF_PROGRAMS = (subprocess.CalledProcessError, subprocess.TimeoutExpired)


def _words_of_program(error: BaseException) -> str:
    """The end of what a program wrote that `subprocess` ran, where that was captured.

    Also of an error that was raised because of such a one.
    """
    found: BaseException | None = error
    for _ in range(CHAIN_LIMIT):
        if found is None or isinstance(found, _OF_PROGRAMS):
            break
        found = found.__cause__ or found.__context__
    return _words_of(found) if isinstance(found, _OF_PROGRAMS) else ""


def _words_of(error: subprocess.CalledProcessError | subprocess.TimeoutExpired) -> str:
    try:
        for written in (error.stderr, error.output):
            if isinstance(written, bytes):
                written = written[-4 * WORDS_LIMIT :].decode(errors="backslashreplace")
            if isinstance(written, str) and written.strip():
                return cut_start(written[-2 * WORDS_LIMIT :].strip(), WORDS_LIMIT)
    except BaseException:  # somebody's own kind of it
        return ""
    return ""


def _traceback_text(error: BaseException, words: str) -> str:
    try:
        lines: Iterable[str] = traceback.format_exception(
            type(error), error, without_our_frames(error.__traceback__)
        )
        text = "".join([*lines, words])
    except BaseException as broken:
        return f"{type(error).__name__}: <its traceback raised {type(broken).__name__}>"
    if len(text) > TRACEBACK_LIMIT:  # the end names the error, the start names the caller
        half = TRACEBACK_LIMIT // 2
        text = f"{text[:half]}\n  ... cut ...\n{text[-half:]}"
    return text


def without_our_frames(tb: TracebackType | None) -> TracebackType | None:
    """The traceback from where it leaves this package."""
    while tb is not None and is_ours(tb.tb_frame.f_code.co_filename):
        tb = tb.tb_next
    return tb


def _where(error: BaseException) -> str:
    """The innermost frame in the user's own code, or the innermost at all, where that helps."""
    tb = without_our_frames(error.__traceback__)
    best = last = None
    while tb is not None:
        last = tb
        if is_users_file(tb.tb_frame.f_code.co_filename):
            best = tb
        tb = tb.tb_next
    found = best or last
    if found is None:
        return ""
    code = found.tb_frame.f_code
    if found is not best and os.path.basename(code.co_filename) in _TELLS_NOTHING:
        return ""
    where = f"{notebook.shown(code.co_filename)}:{found.tb_lineno} in {code.co_name}"
    return cut_start(where, WHERE_LIMIT)
