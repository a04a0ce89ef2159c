"""One failure, as plain data made where it happened: bounded in size, safe to send.

Nothing in here may raise: it describes objects whose ``repr``, ``str`` and pickling may be broken.
"""

from __future__ import annotations

import bdb
import linecache
import os
import subprocess
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from at_once_dask.user_code import notebook
from at_once_dask.user_code.modules import is_ours, is_users_file
from at_once_dask.user_code.text import _name, cut, cut_start, first_line, sound

if TYPE_CHECKING:
    from types import TracebackType

CHAIN_LIMIT = 5  # errors, each the cause of the one before
MESSAGE_LIMIT = 2_000  # characters
TRACEBACK_LIMIT = 20_000  # characters
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


@dataclass(slots=True)
class Failure:
    """A failure of one input, or of one key in the reduction.

    Crosses from the worker to the driver; the input or key itself stays with the driver,
    which knows it by `position`.

    Attributes
    ----------
    position : int
        Of the input in the order of use (stage ``reduce``: of the key, by first appearance).
    stage : str
        ``check``, ``process``, ``verify``, ``reduce``, ``send`` or ``collect``.
    kind : str
        ``exception``, ``crash``, ``memory``, ``timeout`` or ``lost``.
    error, message, traceback : str
        The exception's type name, its text and its traceback; of a death its signal or exit code,
        what is known of it, and the stack where one could be had.
    where : str
        The innermost place in the user's own code, ``file:line in function``; of a notebook's
        cell ``In[3]:line in function``.
    worker, host : str
        The worker's address, and the name of its host; empty for what failed in the driver.
    seconds : float
        How long this attempt took.
    attempts : int
        How many attempts were made.
    exit : str or None
        Signal name or exit code of a death.
    final : bool
        There is no further attempt: it would not show it any more, or fail in the same way.
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
    host: str = ""

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
