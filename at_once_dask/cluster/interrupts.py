"""Ctrl-C and SIGTERM during a run: noticed at once, acted upon where nothing is left half done."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TOO_LONG_SECONDS = 5.0  # for a stop


class Interrupts:
    """The signals that came during a run; a context manager for the main thread.

    The first one ends the run: with KeyboardInterrupt, or for SIGTERM with ``SystemExit(143)``, as
    shells count it. Further ones change nothing, so a second Ctrl-C cannot break the tidying up;
    but where that takes too long, because a scheduler does not answer, they break it off.
    A signal that somebody else handles, or ignores, is left alone.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._told: float | None = None  # when
        self._raised: BaseException | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
            for number, usual in ours.items():
                if signal.getsignal(number) is usual:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise when a signal came that was not acted upon yet."""
        if self._came is not None and self._told is None:
            self._told = time.monotonic()
            self._raised = KeyboardInterrupt() if self._came == signal.SIGINT else SystemExit(143)
            raise self._raised

    def is_behind(self, error: BaseException) -> bool:
        """Whether a signal is what `error` comes of, rather than the code that it came out of."""
        if isinstance(error, KeyboardInterrupt) or error is self._raised:
            return True
        return isinstance(error, SystemExit) and _passed_a_handler(error)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While something runs that may take its time and may be broken off anywhere."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._came is None:
            self._came = number
        if self._at_once:
            self.check()
        if self._told is not None and time.monotonic() - self._told > TOO_LONG_SECONDS:
            raise KeyboardInterrupt


def _passed_a_handler(error: BaseException) -> bool:
    """Whether somebody's own handler of a signal raised it: many programs end by that."""
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = {getattr(handler, "__code__", None) for handler in handlers}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))
