"""One failure, as plain data made where it happened: bounded in size, safe to send.

Nothing in here may raise: it describes objects whose ``repr``, ``str`` and pickling may be broken.
"""

from __future__ import annotations

import os
import reprlib
import site
import sysconfig
import traceback
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from at_once_dask import cells

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

MESSAGE_LIMIT = 2_000  # characters
TRACEBACK_LIMIT = 20_000  # characters
REPR_LIMIT = 200  # characters, the log's

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
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

    @property
    def cause(self) -> tuple[str, str, str, str]:
        """Failures are equal when they have this in common."""
        return self.kind, self.stage, self.error, self.where

    def line(self) -> str:
        """One line for people: where, what, why."""
        place = f" at {self.where}" if self.where else ""
        return f"{self.error} in {self.stage}{place}: {first_line(self.message)}"


def from_exception(position: int, stage: str, error: BaseException) -> Failure:
    """Describe an exception that user code raised at `stage`."""
    return Failure(
        position=position,
        stage=stage,
        kind="exception",
        error=type(error).__name__,
        message=cut(_text(error), MESSAGE_LIMIT),
        traceback=_traceback_text(error),
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
    if isinstance(value, (str, bytes)) and len(value) > limit:
        value = value[:limit]
    try:
        text = _bounded(value, limit) if isinstance(value, _CONTAINERS) else repr(value)
    except BaseException as error:
        return f"<{type(value).__name__} object whose repr raised {type(error).__name__}>"
    # Half a surrogate pair would break whatever it is sent through.
    return cut(text.encode(errors="backslashreplace").decode(), limit)


def cut(text: str, limit: int) -> str:
    """`text`, shortened to `limit` characters with an ellipsis in the last one."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def first_line(text: str) -> str:
    return text.split("\n", 1)[0]


_CONTAINERS = (list, tuple, dict, set, frozenset)


def _bounded(value: object, limit: int) -> str:
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = 30
    short.maxstring = short.maxlong = short.maxother = limit
    return short.repr(value)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:
        return f"<str of this exception raised {type(broken).__name__}>"


def _traceback_text(error: BaseException) -> str:
    try:
        lines: Iterable[str] = traceback.format_exception(
            type(error), error, _without_our_frames(error.__traceback__)
        )
        text = "".join(lines)
    except BaseException as broken:
        return f"{type(error).__name__}: <its traceback raised {type(broken).__name__}>"
    if len(text) > TRACEBACK_LIMIT:  # the end names the error, the start names the caller
        half = TRACEBACK_LIMIT // 2
        text = f"{text[:half]}\n  ... cut ...\n{text[-half:]}"
    return text


def _without_our_frames(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and is_ours(tb.tb_frame.f_code.co_filename):
        tb = tb.tb_next
    return tb


def _where(error: BaseException) -> str:
    """The innermost frame in the user's own code, or the innermost at all."""
    tb = _without_our_frames(error.__traceback__)
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
    return f"{cells.shown(code.co_filename)}:{found.tb_lineno} in {code.co_name}"
