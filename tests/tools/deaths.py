"""Ways to end an input: each a function of one line, for real, and how a report names it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

MEGABYTES = b"x" * 10**7


class Unpicklable(Exception):
    """Cannot be sent."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("this exception cannot be pickled")


class Speechless(Exception):
    """Cannot be printed."""

    def __str__(self) -> NoReturn:
        raise RuntimeError("no words")

    __repr__ = __str__


def exception() -> None:
    raise ValueError("as planned")


def system_exit() -> None:
    raise SystemExit(3)


def keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def stop_iteration() -> None:
    next(iter(()))


def unpicklable() -> None:
    raise Unpicklable


def speechless() -> None:
    raise Speechless


def os_exit() -> None:
    os._exit(3)


def sigkill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def stack_overflow() -> None:
    ctypes.CDLL(None).regcomp(ctypes.create_string_buffer(1024), b"(" * 200_000, 1)


def memory() -> None:
    hoard: list[bytes] = []
    while True:
        hoard.append(MEGABYTES + b"x")
        time.sleep(0.005)  # slower than the nanny looks


def hang() -> None:
    while True:
        time.sleep(0.01)


def hang_in_c() -> None:
    ctypes.PyDLL(None).sleep(600)


@dataclass(frozen=True)
class Way:
    """A way to die, and what the report says of it."""

    die: Callable[[], Any]
    kind: str
    error: str
    exit: str | None = None

    @property
    def timeout(self) -> float | None:
        """The limit that it takes to end it."""
        return 1.0 if self.kind == "timeout" else None


WAYS = {
    way.die.__name__: way
    for way in (
        Way(exception, "exception", "ValueError"),
        Way(system_exit, "exception", "SystemExit"),
        Way(keyboard_interrupt, "exception", "KeyboardInterrupt"),
        Way(stop_iteration, "exception", "StopIteration"),
        Way(unpicklable, "exception", "Unpicklable"),
        Way(speechless, "exception", "Speechless"),
        Way(os_exit, "crash", "exit 3", "exit 3"),
        Way(sigkill, "crash", "SIGKILL", "SIGKILL"),
        Way(segfault, "crash", "SIGSEGV", "SIGSEGV"),
        Way(abort, "crash", "SIGABRT", "SIGABRT"),
        Way(stack_overflow, "crash", "SIGSEGV", "SIGSEGV"),
        Way(memory, "memory", "MemoryError", "SIGTERM"),
        Way(hang, "timeout", "TimeoutError", "SIGKILL"),
        Way(hang_in_c, "timeout", "TimeoutError", "SIGKILL"),
    )
}

if __name__ == "__main__":  # `python tests/deaths.py segfault`: to look at one
    WAYS[sys.argv[1]].die()
