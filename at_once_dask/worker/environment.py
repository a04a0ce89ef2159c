"""A function finds the driver's things in a worker: directory, environment, import path.

And edited modules, the level of the root logger, the interpreter's settings; asyncio and Dask work
in it as in a plain loop. For the own cluster only; a borrowed one keeps its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import multiprocessing.spawn
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask
from dask.local import get_sync
from distributed import get_client

from at_once_dask.protocol import lease
from at_once_dask.user_code.modules import users_modules
from at_once_dask.worker import processes


@dataclass(frozen=True)
class Environment:
    """The things that a worker shares with the driver; crosses to each worker at each run.

    Attributes
    ----------
    directory : str or None
        The current directory; ``None`` when the driver's own is gone.
    environment : dict of str
    path : list of str
        ``sys.path``.
    log_level : int
        Of the root logger.
    start_method : str
        How `multiprocessing` starts the processes of those who do not say.
    """

    directory: str | None
    environment: dict[str, str]
    path: list[str]
    log_level: int
    start_method: str

    def adopt(self) -> None:
        """Make them this process's; modules edited since they were imported are forgotten."""
        if self.directory is not None:
            os.chdir(self.directory)
        for name in os.environ.keys() - self.environment.keys():
            del os.environ[name]
        os.environ.update(self.environment)
        processes.mark_as_worker()
        sys.path[:] = self.path
        self._adopt_log_level()
        multiprocessing.set_start_method(self.start_method, force=True)
        forget_edited_modules()

    def _adopt_log_level(self) -> None:
        """Only what the driver has changed since: the functions may have set one of their own."""
        global _log_level
        if self.log_level != _log_level:
            logging.getLogger().setLevel(self.log_level)
            _log_level = self.log_level


_log_level = logging.WARNING  # the driver's, as far as this process knows: Python's own
_looked_at = time.time_ns()  # when this process last looked for edited modules
_known: dict[str, tuple[int, int]] = {}


def forget_edited_modules() -> None:
    """Drop the user's modules from this process when a file of one has changed; they import anew.

    All of them, because a module that was not edited may hold what it imported from one that was.
    """
    global _looked_at
    now = time.time_ns()
    modules = dict(users_modules())
    stamps = {file: stamp for file in modules.values() if (stamp := _stamp(file)) is not None}
    edited = any(
        stamp != _known.get(file, stamp) or stamp[0] > _looked_at for file, stamp in stamps.items()
    )
    if edited:
        for name in modules:
            sys.modules.pop(name, None)
    _known.update(stamps)
    _looked_at = now
    importlib.invalidate_caches()


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@dataclass(frozen=True)
class InterpreterSettings:
    """Settings that a script makes for all of its process, and that change results.

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
    def of_this_process(cls) -> InterpreterSettings:
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
    """Compute what an input asks Dask for in its own thread, and start no other input there.

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
