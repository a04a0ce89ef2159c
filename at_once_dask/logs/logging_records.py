"""`logging` records of inputs: noted where a logger hands them to its handlers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import FrameType
from typing import Any

from at_once_dask.user_code.replaced import Replaced

_FORMAT = logging.Formatter("%(name)s: %(message)s")
_NOTED = "_at_once_dask_noted"  # an attribute of records; formatters that list all pass by such
_EMIT = logging.StreamHandler.emit.__code__


def noting(is_captured: Callable[[], bool], write: Callable[[str, str], object]) -> Replaced:
    """Note what comes to the root logger, until it is undone.

    A handler of the root logger would keep ``logging.basicConfig`` from doing anything. And a
    record is not to be noted where it is made: filters may drop it or take a password out of it,
    and it may be a copy of another process's, which gets its text only later. So it is noted behind
    the loggers' filters, when the handlers have had it, unless a logger keeps it from the root.

    Parameters
    ----------
    is_captured : callable
        Whether it is an input that logs.
    write : callable
        Called with the level's name and the text.
    """

    def make(before: Any) -> Any:
        @functools.wraps(before)
        def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
            if not _comes_to_root(logger) or is_noted(record) or not is_captured():
                before(logger, record)
                return
            setattr(record, _NOTED, True)  # first: what handlers print of it is the same again
            try:
                before(logger, record)
            finally:
                text = _text(record)
                if text is not None:
                    write(record.levelname, text)

        return call_handlers

    return Replaced(logging.Logger, "callHandlers", make)


def is_noted(record: logging.LogRecord) -> bool:
    return getattr(record, _NOTED, False)


def writes_noted(caller: FrameType) -> bool:
    """Whether it is a handler that writes, as `StreamHandler` does, what is noted anyhow.

    What a handler's own ``emit`` writes may say more than the record, and is logged beside it.
    """
    return caller.f_code is _EMIT and is_noted(caller.f_locals["record"])


def _comes_to_root(logger: logging.Logger) -> bool:
    current: logging.Logger | None = logger
    while current is not None and current.propagate and current.parent is not None:
        current = current.parent
    return current is not None and current.parent is None  # whether that propagates, nobody asks


def _text(record: logging.LogRecord) -> str | None:
    """As a handler would write it; others may format the traceback in their own way."""
    before, record.exc_text = record.exc_text, None
    try:
        return _FORMAT.format(record)
    except Exception:  # handlers have said so
        return None
    finally:
        record.exc_text = before
