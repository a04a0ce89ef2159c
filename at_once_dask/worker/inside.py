"""What a function may do inside a worker as in a plain loop: use asyncio, and compute with Dask."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask
from dask.local import get_sync
from distributed import get_client

from at_once_dask.protocol import lease


@dataclass(frozen=True)
class Settings:
    """What a script sets at its top for all of its process, and what changes results: as it is now.

    Attributes
    ----------
    recursion_limit : int
    socket_timeout : float or None
        Seconds.
    csv_limit : int or None
        Characters of a field; None where `csv` is not imported.
    decimal : decimal.Context or None
    numpy_errors : dict of str, or None
        As of ``numpy.geterr``.
    """

    recursion_limit: int
    socket_timeout: float | None
    csv_limit: int | None
    decimal: Any
    numpy_errors: dict[str, str] | None

    @classmethod
    def of_this_process(cls) -> Settings:
        known: dict[str, Any] = sys.modules
        return cls(
            sys.getrecursionlimit(),
            socket.getdefaulttimeout(),
            known["csv"].field_size_limit() if "csv" in known else None,
            known["decimal"].getcontext().copy() if "decimal" in known else None,
            known["numpy"].geterr() if "numpy" in known else None,
        )

    def adopt(self) -> None:
        """Make them this thread's, and where there is one for all, this process's."""
        sys.setrecursionlimit(self.recursion_limit)
        socket.setdefaulttimeout(self.socket_timeout)
        if self.csv_limit is not None:
            importlib.import_module("csv").field_size_limit(self.csv_limit)
        if self.decimal is not None:
            importlib.import_module("decimal").setcontext(self.decimal.copy())
        if self.numpy_errors is not None:
            importlib.import_module("numpy").seterr(**self.numpy_errors)


def give_event_loop() -> None:
    """This thread gets one, as the main thread has: ``asyncio.get_event_loop()`` asks for it."""
    with contextlib.suppress(RuntimeError):
        if not asyncio.get_event_loop().is_closed():
            return
    asyncio.set_event_loop(asyncio.new_event_loop())


@contextlib.contextmanager
def computing_in_place() -> Iterator[None]:
    """What an input computes with Dask runs in its own thread, and starts no other input there.

    Dask would send it to the workers, which wait for it, and let this worker go on with the next
    partition meanwhile. Whoever has named a scheduler keeps it.
    """
    if dask.config.get("scheduler", None) is not None:
        yield
    else:
        with dask.config.set(scheduler=_compute):
            yield


def _compute(graph: Any, keys: Any, **options: Any) -> Any:
    if lease.here() is not None:
        return get_sync(graph, keys, **options)
    return get_client().get(graph, keys, **options)  # another one's task, in the same process
