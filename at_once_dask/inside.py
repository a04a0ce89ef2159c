"""What a function may do inside a worker as in a plain loop: use asyncio, and compute with Dask."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import Iterator
from typing import Any

import dask
from dask.local import get_sync
from distributed import get_client

from at_once_dask import lease


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


@contextlib.contextmanager
def may_start_processes() -> Iterator[None]:
    """Also in a process that `multiprocessing` lets have no children: Dask makes workers so."""
    config: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    daemon = config.get("daemon")
    config["daemon"] = False
    try:
        yield
    finally:
        config["daemon"] = daemon
