"""`logging` records of inputs: noted where they are made, whatever handlers do with them then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import FrameType
from typing import Any

_FORMAT = logging.Formatter("%(name)s: %(message)s")
_NOTED = "at_once_dask_noted"  # an attribute of records
_EMIT = logging.StreamHandler.emit.__code__


class Factory:
    """Makes records, as ``logging.setLogRecordFactory`` takes it.

    No handler would do: one of the root logger keeps ``logging.basicConfig`` from doing anything.

    Parameters
    ----------
    write : callable
        Called with the level's name and the text; returns whether it was an input that logged.
    """

    def __init__(self, write: Callable[[str, str], bool]) -> None:
        self._write = write
        self._make: Callable[..., logging.LogRecord] = logging.getLogRecordFactory()

    def install(self) -> None:
        logging.setLogRecordFactory(self)

    def uninstall(self) -> None:
        """Somebody who has put another one there meanwhile keeps it."""
        if logging.getLogRecordFactory() is self:
            logging.setLogRecordFactory(self._make)

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        try:
            text = _FORMAT.format(record)
        except Exception:  # handlers will say so
            return record
        record.exc_text = None  # others may format it in their own way
        setattr(record, _NOTED, self._write(record.levelname, text))
        return record


def is_noted(caller: FrameType) -> bool:
    """Whether it is a handler that writes, as `StreamHandler` does, what has been noted already.

    What a handler's own ``emit`` writes may say more than the record, and is logged beside it.
    """
    return caller.f_code is _EMIT and getattr(caller.f_locals["record"], _NOTED, False)
