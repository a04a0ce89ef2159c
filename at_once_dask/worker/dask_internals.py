"""Private parts of Dask, and of `multiprocessing` below it, that workers and nannies lean on.

Each says what breaks without it; ``tests/unit/cluster/test_dask_internals.py`` fails when it
changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing.process
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from dask.bag import Bag


def _class_of_forked() -> Any:
    """None where nothing can be forked: there are no exit codes to be read."""
    try:
        from multiprocessing import popen_forkserver
    except ImportError:
        return None
    return popen_forkserver.Popen


_Popen = _class_of_forked()
_read_exit_code: Any = getattr(_Popen, "poll", None)
_AT_ONCE = getattr(os, "WNOHANG", 1)
_reading = threading.Lock()  # whoever comes second finds the code
_readers = 0  # those who want it so: the own cluster, and nanny plugins of borrowed ones
_counting = threading.Lock()


def _poll(self: Any, flag: int = _AT_ONCE) -> int | None:
    if self.returncode is None:
        timeout = 0 if flag == _AT_ONCE else None
        if not multiprocessing.connection.wait([self.sentinel], timeout):
            return None
    with _reading:
        code: int | None = _read_exit_code(self, _AT_ONCE)
        return code


@contextlib.contextmanager
def exit_codes_read_once() -> Iterator[None]:
    """Exit codes of forked workers are right while this lasts, for whoever asks.

    The fork server sends each code once, and `multiprocessing` has no lock around reading it. When
    one thread waits for a worker's end while another one starts a process, which looks after all
    others, both may read; the second one finds nothing there, and puts 255 in the code's place.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


@contextlib.contextmanager
def may_be_started() -> Iterator[None]:
    """Also by a process that `multiprocessing` lets have no children, for nobody would end them.

    Those of a Pool are such, and Dask's workers. The own cluster's watchdog ends what they start.
    """
    config: Any = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    daemonic = config.get("daemon")
    if daemonic:
        config["daemon"] = False
    try:
        yield
    finally:
        if daemonic:
            config["daemon"] = daemonic


def _count(more: int) -> None:
    global _readers
    with _counting:
        _readers += more
        if _Popen is not None:
            _Popen.poll = _poll if _readers else _read_exit_code


def _forget() -> None:
    """In a child that was forked: nobody holds a lock any more, and nobody here wants the codes."""
    global _reading, _counting, _readers
    _reading, _counting, _readers = threading.Lock(), threading.Lock(), 0
    _count(0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

CONNECT_SECONDS = 0.02  # between two looks whether a nanny is connected to its worker

_EXITS = "at_once_dask_exits"  # an attribute of a nanny


class _Exits:
    """Who hears of the end of a nanny's workers, by run: several drivers may share it.

    Without it nobody knows an exit code: Dask calls this hook, and says it to no plugin.
    """

    def __init__(self, nanny: Any) -> None:
        self.listeners: dict[str, Callable[[int], None]] = {}
        self._nanny = nanny
        self._go_on = nanny._on_worker_exit_sync
        self._reading = contextlib.ExitStack()
        self._reading.enter_context(exit_codes_read_once())
        nanny._on_worker_exit_sync = self._ended  # for the processes to come
        if nanny.process is not None:
            nanny.process.on_exit = self._ended  # for the one that runs

    def _ended(self, exit: int) -> None:
        for hear in list(self.listeners.values()):
            hear(exit)
        self._go_on(exit)

    def close(self) -> None:
        """The nanny is as it was."""
        self._reading.close()
        del self._nanny._on_worker_exit_sync
        if self._nanny.process is not None:
            self._nanny.process.on_exit = self._nanny._on_worker_exit_sync


def watch_exits(nanny: Any, run: str, hear: Callable[[int], None]) -> None:
    """Call `hear` with the exit code of each worker of this nanny, before the next one starts."""
    if not hasattr(nanny, _EXITS):
        setattr(nanny, _EXITS, _Exits(nanny))
    getattr(nanny, _EXITS).listeners[run] = hear


def forget_exits(nanny: Any, run: str) -> None:
    """Undo `watch_exits`."""
    exits = getattr(nanny, _EXITS)
    exits.listeners.pop(run, None)
    if not exits.listeners:
        exits.close()
        delattr(nanny, _EXITS)


async def watch_worker(plugin: Any, name: str, address: str, dask_worker: Any) -> None:
    """Runs in a nanny; the last parameter's name is Dask's.

    Without it a nanny that is replacing its worker never gets the plugin, and one that is not yet
    connected to its worker never replaces it. `plugin` may be pickled.
    """
    if name not in dask_worker.plugins:
        answer = await dask_worker.plugin_add(plugin=plugin, name=name)
        if answer["status"] != "OK":
            why = answer.get("exception_text", answer)
            raise RuntimeError(f"the plugin of its nanny cannot be set up: {why}")
    while dask_worker.worker_address != address and name in dask_worker.plugins:
        await asyncio.sleep(CONNECT_SECONDS)


def optimised(bag: Bag, keep: Any) -> dict[Any, Any]:
    """The graph of a lazy bag, fused; without `fuse_keys` the key `keep` would be gone."""
    keys = bag.__dask_keys__()
    graph: dict[Any, Any] = Bag.__dask_optimize__(bag.dask, keys, fuse_keys=[keep])
    return graph
