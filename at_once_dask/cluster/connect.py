"""Where the work runs: the library's own cluster, or one that is borrowed.

The own cluster is started at the first need and kept for later calls.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from distributed import Client, Nanny

from at_once_dask.cluster import dashboard, forkserver
from at_once_dask.cluster.dashboard import Page
from at_once_dask.cluster.dask_internals import forget_parents, listed
from at_once_dask.cluster.own import OwnCluster, Worker, interrupts_wait
from at_once_dask.errors import InputError
from at_once_dask.options import ClusterSettings, checked_client
from at_once_dask.user_code.modules import current_directory
from at_once_dask.worker import processes
from at_once_dask.worker.environment import Environment

LOOK_SECONDS = 2.0  # for the scheduler to say which workers there are
END_SECONDS = 1.0  # for the nannies of a borrowed cluster to end workers

_own: OwnCluster | None = None
_links: weakref.WeakKeyDictionary[Client, str | None] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def start(settings: ClusterSettings, make_page: Callable[[], Page]) -> Client:
    """The Client of the own cluster, which is started unless it runs with these settings.

    `make_page` makes the page that its dashboard shows beside those of Dask.
    """
    global _own
    with _lock:
        if _own is not None and _own.client.status != "running":
            close()  # somebody closed the Client: what is left of the cluster goes with it
        if _own is None:
            _own = OwnCluster(settings, make_page(), _close_at_exit)
        elif _own.settings != settings:
            raise InputError(
                f"a cluster with {_own.settings} is running; call at_once_dask.close() first, then"
                f" at_once_dask.start({settings})"
            )
        return _own.client


def close() -> None:
    """Stop the own cluster; nothing happens when there is none."""
    global _own
    with interrupts_wait(), _lock:
        own, _own = _own, None
        if own is not None:
            own.close()


def _close_at_exit() -> None:
    while _own is not None:
        with contextlib.suppress(KeyboardInterrupt):  # it is ending already
            close()


atexit.register(_close_at_exit)


def _forget() -> None:
    """In a child that was forked, which has none of the threads that the cluster lives by."""
    global _own, _lock, _running
    own, _own = _own, None
    _lock, _running = threading.RLock(), threading.Lock()
    if own is not None:
        _others.append(own)
        own.forget()
    forget_parents()


_others: list[OwnCluster] = []  # of parents; what is in them must never be collected
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@dataclass(frozen=True)
class Cluster:
    """The cluster of one run: a Client, and the own cluster when it is that one's."""

    client: Client
    _own: OwnCluster | None = None

    @property
    def own(self) -> bool:
        return self._own is not None

    def workers(self) -> dict[str, Worker]:
        """The workers that live, by address; own ones whose nanny has given up get another one."""
        if self._own is None:
            found: dict[str, Any] = self.client.sync(
                listed, self.client, callback_timeout=LOOK_SECONDS
            )
            return {address: Worker.of(known) for address, known in found.items()}
        workers = self._own.known()
        if len(workers) < self._own.n_workers:
            self._own.revive()
            workers = self._own.living() | workers
        return workers

    def nannies(self) -> dict[str, Nanny]:
        """By address; none of a borrowed cluster is in this process."""
        return {} if self._own is None else self._own.nannies()

    @property
    def scheduler(self) -> Any:
        """The scheduler, where it is in this process; None of a borrowed cluster."""
        return None if self._own is None else self._own.scheduler

    @property
    def adapts(self) -> bool:
        """Whether it is known to start workers by itself."""
        return self.own or getattr(self.client.cluster, "_adaptive", None) is not None

    @property
    def how_to_start(self) -> str:
        """The way to more workers, for people."""
        scheduler = self.client.scheduler
        address = "ADDRESS" if scheduler is None else scheduler.address
        scale = " or cluster.scale(4)" if self.client.cluster is not None else ""
        return f"start some, as with `dask worker {address}`{scale}; Ctrl-C ends the run"

    def check_starts(self, since: float) -> None:
        """Raise when it is known why own workers that have nothing to do do not stay."""
        if self._own is not None:
            self._own.check_memory(since)

    @property
    def scratch(self) -> str | None:
        """A folder that the driver and all workers see; None where nobody knows of any."""
        return None if self._own is None else self._own.scratch

    @property
    def page(self) -> Page | None:
        """The page beside those of Dask; None on a borrowed cluster."""
        return None if self._own is None else self._own.page

    @property
    def dashboard_link(self) -> str | None:
        """Asked once a borrowed cluster: it is a message to the scheduler."""
        if self.own:
            return dashboard.link_of(self.client)
        if self.client not in _links:
            _links[self.client] = dashboard.link_of(self.client)
        return _links[self.client]

    def environment(self) -> Environment | None:
        """The environment that workers adopt: none on a borrowed cluster."""
        return None if self._own is None else environment_of_this_process()

    def end_workers(self, addresses: set[str]) -> set[str]:
        """End the worker processes at `addresses`, whatever they do; nannies replace them.

        On a borrowed cluster a worker without a nanny is left alone: it would not come back.
        Returns the addresses of those that end.
        """
        if self._own is not None:
            self._own.end_workers(addresses)
            return addresses
        ended: set[str] = set()
        with contextlib.suppress(OSError):  # whoever cannot be reached in time is left alone
            self.client.sync(self._end_borrowed, addresses, ended, callback_timeout=END_SECONDS)
        return ended

    async def _end_borrowed(self, addresses: set[str], ended: set[str]) -> None:
        """Each by itself: one that cannot be reached keeps no other from its end."""
        workers = await listed(self.client)

        async def end(address: str) -> None:
            await self.client.run(_end_my_worker, workers=[address], nanny=True, on_error="ignore")
            ended.add(address)

        with_nanny = [address for address in addresses if workers.get(address, {}).get("nanny")]
        await asyncio.gather(*map(end, with_nanny), return_exceptions=True)


def lent(client: Client | None) -> Client | None:
    """The given Client, else the session's default one; None when the own cluster is to be used."""
    if client is None:
        with contextlib.suppress(ValueError):
            client = Client.current()
    if client is None or (_own is not None and client is _own.client):
        return None
    return checked_client(client)


def find(lent: Client | None, make_page: Callable[[], Page]) -> Cluster:
    """The cluster of the Client that was lent, else the own one, started if need be."""
    if lent is not None:
        return Cluster(lent)
    if _own is None or _own.client.status != "running":
        # The settings of a cluster whose Client was closed behind our back; else the defaults.
        start(ClusterSettings().checked() if _own is None else _own.settings, make_page)
    assert _own is not None
    _own.wait_for_workers()
    return Cluster(_own.client, _own)


def environment_of_this_process() -> Environment:
    """The environment that own workers share with the driver, as it is now."""
    environment = forkserver.THREAD_LIMITS | dict(os.environ) | dict([processes.mark()])
    path = [entry for entry in sys.path if isinstance(entry, str)]  # Python skips all others
    method = multiprocessing.get_start_method(allow_none=True)
    return Environment(
        current_directory(),
        environment,
        path,
        logging.getLogger().level,
        method or multiprocessing.get_all_start_methods()[0],
    )


def _end_my_worker(dask_worker: Any) -> None:
    """Runs in a nanny; the parameter's name is Dask's."""
    if dask_worker.pid is not None:
        processes.end_tree(dask_worker.pid)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """One run in a process at a time, and none inside another's functions."""
    if not _running.acquire(blocking=False):
        raise InputError(
            "run() was called while another run is going on in this process; wait for that one, or"
            " pass both lists in one call, as in run(first + second, check_inp, process_inp)"
        )
    try:
        yield
    finally:
        _running.release()


_running = threading.Lock()
