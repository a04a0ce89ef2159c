"""Where the work runs: the library's own cluster, or one that is borrowed.

The own cluster is started at the first need and kept for later calls. All of it listens on
loopback only, and its scheduler and workers talk TLS with credentials made for this session.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import logging
import multiprocessing.process
import multiprocessing.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import dask
import distributed.utils
from dask.system import CPU_COUNT
from dask.utils import format_bytes, parse_bytes
from distributed import Client, LocalCluster, Nanny
from distributed.comm.core import CommClosedError
from distributed.core import Status
from distributed.deploy.spec import SpecCluster

from at_once_dask.cluster import dashboard, forkserver, machine, tls, watchdog
from at_once_dask.errors import AtOnceError, InputError
from at_once_dask.live import monitor, page
from at_once_dask.live.monitor import Sight
from at_once_dask.options import DASHBOARD, checked_client
from at_once_dask.user_code.text import safe_repr
from at_once_dask.worker import environment, processes
from at_once_dask.worker.plugin import OwnWorker

T = TypeVar("T", Client, LocalCluster)

START_SECONDS = 30  # for the workers to come
LEAST_MEMORY = 50 * 2**20  # bytes; an idle worker holds more
START_LOOK_SECONDS = 1.0  # how often it is looked meanwhile why they do not
MEMORY_TOPIC = "worker-restart-memory"  # Dask's, for workers that are ended for memory
MEMORY_DEATHS = 2  # of each worker, while none has anything to do: then none will ever stay
LOOK_SECONDS = 5.0  # for the scheduler to tell which workers there are
END_SECONDS = 2.0  # for the nannies of a borrowed cluster to end workers
HANG_UP_SECONDS = 2  # for the connections of browsers to close
_GIVEN_UP = (Status.failed, Status.closed)
_NEVER = logging.CRITICAL + 1

# Dask's settings for the own cluster, for as long as it lives: nannies read them at each restart.
_CONFIG = {
    # A worker starts in 0.2 s instead of 1.5 s: what it needs is imported already.
    "distributed.worker.multiprocessing-method": "forkserver",
    # Inputs may start processes of their own; `_OwnWorker` sees to it that these end.
    "distributed.worker.daemon": False,
    # An input may hold the GIL for minutes, and its worker is healthy.
    "distributed.scheduler.worker-ttl": None,
    # Some seconds after a worker has died Dask looks whether it is back, and else lets go of its
    # nanny: also when it is back, and has died again at that very moment.
    "distributed.deploy.lost-worker-timeout": "365 days",
    # For its own developers Dask keeps the last 1,000 messages to each worker, with all inputs.
    "distributed.admin.low-level-log-length": 16,
    # A paused worker may never wake; one that holds too much is ended, and its input is named.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
}


@dataclass(frozen=True)
class _Settings:
    n_workers: int
    memory_limit: str | int | float | None
    dashboard_address: str

    def __str__(self) -> str:
        """As arguments."""
        return ", ".join(f"{name}={value!r}" for name, value in vars(self).items())


class _Own:
    """The own cluster while it runs: its Client, and what must be undone at the end."""

    def __init__(self, settings: _Settings) -> None:
        self.settings = settings
        self.sight = Sight()
        self._undo = contextlib.ExitStack()
        try:
            with _interrupts_wait():
                self._prepare()
                with _one_error():
                    self._cluster = self._to_close(self._start())
                self._undo.enter_context(
                    dashboard.build_on_demand(self._cluster.scheduler, self.sight)
                )
                self._undo.callback(self._hang_up)
                self.client: Client = self._to_close(self._connect())
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """All that the cluster needs around it."""
        forkserver.start()
        machine.check(self.settings.n_workers)
        self._dashboard_address = _free_address(self.settings.dashboard_address)
        self.scratch = tempfile.mkdtemp(prefix="at_once_dask-")
        self._undo.callback(shutil.rmtree, self.scratch, ignore_errors=True)
        self._groups = processes.groups_folder(self.scratch)
        dog = watchdog.watch("=".join(processes.mark()), self.scratch, forkserver.folder())
        self._undo.callback(_dismiss, dog)
        self._undo.enter_context(_ended_in_time())
        self._undo.enter_context(processes.may_be_started())
        self._undo.enter_context(processes.exit_codes_read_once())
        forkserver.keep_main_out_of_workers()
        self._undo.callback(forkserver.let_main_into_processes)
        self._config = dask.config.set(_CONFIG | dashboard.link_setting())
        self._undo.enter_context(self._config)

    def _start(self) -> LocalCluster:
        # Dask would name every package it can use, NumPy and pandas among them, and import them in
        # the driver to find out; this is its switch for having done so.
        distributed.utils._forkserver_preload_set = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            # Where there is no network; the address is only a name, among those of this process.
            warnings.filterwarnings("ignore", message="Couldn't detect a suitable IP address")
            return LocalCluster(
                n_workers=self.settings.n_workers,
                threads_per_worker=1,
                memory_limit=self.settings.memory_limit,
                host="127.0.0.1",
                security=tls.temporary(),
                dashboard_address=self._dashboard_address,
                worker_dashboard_address=None,
                worker_class=_OwnNanny,
                groups=self._groups,
                local_directory=self.scratch,
                scheduler_kwargs={
                    # Dask puts it on `sys.path`: it must not lie where others may write.
                    "local_directory": self.scratch,
                    "dashboard": False,
                    # For workers, and for the client, which needs no socket and no TLS.
                    "protocol": ["tls", "inproc"],
                    "host": ["127.0.0.1", None],
                    "port": [0, None],
                },
                silence_logs=logging.CRITICAL,  # what matters of it is told by the run itself
            )

    def _connect(self) -> Client:
        """The Client: it is in the scheduler's process, and on its event loop."""
        scheduler = self._cluster.scheduler
        assert scheduler is not None
        _, for_client = scheduler.listeners
        client = Client(
            for_client.contact_address,
            loop=self._cluster.loop,
            security=self._cluster.security,
            set_as_default=False,
        )
        client.cluster = self._cluster
        return client

    def _to_close(self, opened: T) -> T:
        """What was closed already, or by its other half, forgets the thread of its event loop."""
        self._undo.callback(opened._loop_runner.stop)
        return self._undo.enter_context(contextlib.closing(opened))

    def wait_for_workers(self) -> None:
        """Workers that were ended are being replaced: the next run has all of them again."""
        self.revive()
        begun, end = time.time(), time.monotonic() + START_SECONDS
        while time.monotonic() < end and not self._come(START_LOOK_SECONDS):
            self.check_memory(begun)
        if not self.client.nthreads():
            raise AtOnceError(
                f"no worker could be started within {START_SECONDS} s; see that the machine has"
                " memory, disk space and processes to spare, call at_once_dask.close(), and run the"
                " same again"
            )

    def _come(self, seconds: float) -> bool:
        """Whether all workers have come after some `seconds`."""
        try:
            self.client.wait_for_workers(self.settings.n_workers, timeout=seconds)
        except TimeoutError:
            return False
        return True

    def check_memory(self, since: float) -> None:
        """Raise when all that came were ended for memory before they had done anything."""
        events = self.client.get_events(MEMORY_TOPIC)
        held = [event["rss"] for at, event in events if at > since]
        if len(held) < MEMORY_DEATHS * self.settings.n_workers:
            return
        limits = {nanny.memory_manager.memory_limit for nanny in self._cluster.workers.values()}
        raise AtOnceError(
            "no worker can start: each is ended for memory before it has begun anything, for it"
            f" holds {format_bytes(max(held))} and may hold {format_bytes(max(limits))}; allow"
            ' more, as with at_once_dask.close() and at_once_dask.start(memory_limit="1 GiB"), and'
            " run the same again"
        )

    def revive(self) -> None:
        """A nanny that could not replace its worker has given up: another one takes its place."""
        workers = self._cluster.workers
        given_up = [n for n, nanny in list(workers.items()) if nanny.status in _GIVEN_UP]
        for name in given_up:
            workers.pop(name, None)
        if len(workers) < self.settings.n_workers:
            self._cluster.scale(self.settings.n_workers)

    def living(self) -> dict[str, Worker]:
        """The processes that live, by address, whether the scheduler knows them or not."""
        workers = {}
        for nanny in list(self._cluster.workers.values()):
            process = nanny.process
            if process is None or not process.is_alive():
                continue
            address, directory = process.worker_address, process.worker_dir
            if address is not None and directory is not None:
                scratch = os.path.dirname(directory)
                workers[address] = Worker(1, False, scratch, nanny.address, directory, ready=False)
        return workers

    def end_workers(self, addresses: set[str]) -> None:
        """SIGKILL, with the processes that their inputs started; the nannies replace them."""
        for nanny in self._cluster.workers.values():
            if nanny.worker_address in addresses and nanny.pid is not None:
                processes.end_tree(nanny.pid)

    def _hang_up(self) -> None:
        """Close what browsers keep open: Dask only stops listening, and then nobody answers them.

        Where somebody has closed the cluster behind our back, there is no event loop to do it.
        """
        with contextlib.suppress(TimeoutError, RuntimeError):
            self._cluster.sync(self._close_connections, callback_timeout=HANG_UP_SECONDS)

    async def _close_connections(self) -> None:
        scheduler: Any = self._cluster.scheduler
        server = scheduler.http_server
        server.stop()
        await server.close_all_connections()

    def close(self) -> None:
        self._undo.close()

    def forget(self) -> None:
        """In a child that was forked: neither it nor Dask touches at its end what is another's."""
        self.client.status = "closed"
        self._cluster.status = Status.closed
        SpecCluster._instances.discard(self._cluster)
        self._config.__exit__(None, None, None)
        forkserver.let_main_into_processes()


class _OwnNanny(Nanny):
    """Keeps a process of the own cluster; lives in the driver."""

    def __init__(self, *args: Any, groups: str, **kwargs: Any) -> None:
        self._groups = tempfile.mkdtemp(dir=groups)
        super().__init__(*args, plugins=(OwnWorker(self._groups),), **kwargs)
        self.pre_spawn_env = {}  # would stay in the driver's environment; see forkserver

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        # However the worker ended, and however early: its file tells its number, Dask no more. At
        # once: later that may be another process's.
        for group in watchdog.groups(self._groups):
            processes.end_group(group)
            processes.end_what_worker_started(group)
            with contextlib.suppress(OSError):
                os.unlink(processes.group_file(self._groups, group))
        super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]


_own: _Own | None = None
_lock = threading.RLock()


def start(
    n_workers: int | None = None,
    memory_limit: str | int | float | None = "auto",
    dashboard_address: str = DASHBOARD,
) -> Client:
    """The Client of the own cluster, which is started unless it runs with these settings."""
    global _own
    settings = _checked(n_workers, memory_limit, dashboard_address)
    with _lock:
        if _own is not None and _own.client.status != "running":
            close()  # somebody closed the Client: what is left of the cluster goes with it
        if _own is None:
            _own = _Own(settings)
        elif _own.settings != settings:
            raise InputError(
                f"a cluster with {_own.settings} is running; call at_once_dask.close() first, then"
                f" at_once_dask.start({settings})"
            )
        return _own.client


def close() -> None:
    """Stop the own cluster; nothing happens when there is none."""
    global _own
    with _interrupts_wait(), _lock:
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
    for finalizer, kept in list(_finalizers().items()):
        if getattr(kept.func, "__module__", "").startswith("distributed."):
            finalizer.detach()
    children: set[Any] = multiprocessing.process._children  # type: ignore[attr-defined]
    children -= {child for child in children if child.name.startswith(forkserver.WORKER)}
    distributed.utils._offload_executor = ThreadPoolExecutor(
        max_workers=1, thread_name_prefix="Dask-Offload"
    )


def _finalizers() -> dict[Any, Any]:
    """What is to be done at the end of the process, of everybody: Dask removes folders there."""
    found: dict[Any, Any] = weakref.finalize._registry  # type: ignore[attr-defined]
    return found


_others: list[_Own] = []  # of parents; what is in them must never be collected
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@dataclass(frozen=True)
class Worker:
    """A worker, as the scheduler knows it.

    Attributes
    ----------
    threads : int
    paused : bool
        Alive, but it begins nothing: Dask finds its memory too full. Own ones are never paused.
    scratch : str
        The folder on its host that its own directory lies in.
    nanny : str or None
        Address of the nanny, who replaces it.
    directory : str
        Its own directory: another process at the same address has another one.
    ready : bool
        False while it only lives: nothing is sent to it, and what it holds is not lost.
    """

    threads: int
    paused: bool
    scratch: str
    nanny: str | None
    directory: str = ""
    ready: bool = True


@dataclass(frozen=True)
class Cluster:
    """The cluster of one run: a Client, and whether it is the library's own."""

    client: Client
    own: bool

    def workers(self) -> dict[str, Worker]:
        """Those that live, by address; own ones whose nanny has given up get another one."""
        workers = {
            address: Worker(
                threads=known["nthreads"],
                paused=known["status"] == "paused",
                scratch=os.path.dirname(known["local_directory"]),
                nanny=known.get("nanny"),
                directory=known["local_directory"],
            )
            for address, known in self._listed().items()
        }
        if self.own:
            assert _own is not None
            if len(workers) < _own.settings.n_workers:
                _own.revive()
                workers = _own.living() | workers
        return workers

    def check_starts(self, since: float) -> None:
        """Raise when it is known why own workers that have nothing to do do not stay."""
        if self.own and _own is not None:
            _own.check_memory(since)

    def _listed(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.sync(listed, self.client, callback_timeout=LOOK_SECONDS)
        return found

    @property
    def scratch(self) -> str | None:
        """A folder that the driver and all workers see; None where nobody knows of any."""
        return _own.scratch if self.own and _own is not None else None

    @property
    def sight(self) -> Sight | None:
        """Where its runs can be seen; None on a borrowed cluster, which has no page of ours."""
        own = _own if self.own and monitor.switched_on else None
        return None if own is None else own.sight

    @property
    def dashboard_link(self) -> str | None:
        return dashboard.link_of(self.client)

    @property
    def page_link(self) -> str | None:
        """Address of the page of our own; None on a borrowed cluster."""
        if self.sight is None or self.dashboard_link is None:
            return None
        return page.beside(self.dashboard_link)

    def surroundings(self) -> environment.Surroundings | None:
        """What the workers are to adopt: nothing on a borrowed cluster."""
        return environment.Surroundings.of_this_process() if self.own else None

    def end_workers(self, addresses: set[str]) -> set[str]:
        """End the worker processes at `addresses`, whatever they do; nannies replace them.

        On a borrowed cluster a worker without a nanny is left alone: it would not come back.
        Returns the addresses of those that end.
        """
        if self.own:
            assert _own is not None
            _own.end_workers(addresses)
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


async def listed(client: Client) -> dict[str, Any]:
    """What the scheduler itself knows of its workers, by address; on the client's event loop.

    ``Client.scheduler_info`` returns what the Client knows, and that is overwritten every two
    seconds by an answer that leaves out workers.
    """
    if client.scheduler is None:
        raise CommClosedError("the client is closed")
    told = await client.scheduler.identity(n_workers=-1)
    workers: dict[str, Any] = told["workers"]
    return workers


def lent(client: Client | None) -> Client | None:
    """The given Client, else the session's default one; None when the own cluster is to be used."""
    if client is None:
        with contextlib.suppress(ValueError):
            client = Client.current()
    if client is None or (_own is not None and client is _own.client):
        return None
    return checked_client(client)


def find(lent: Client | None) -> Cluster:
    """The cluster of the Client that was lent, else the own one, started if need be."""
    if lent is not None:
        return Cluster(lent, own=False)
    if _own is None or _own.client.status != "running":
        start(**_kept_settings())
    assert _own is not None
    _own.wait_for_workers()
    return Cluster(_own.client, own=True)


def _kept_settings() -> dict[str, Any]:
    """Settings of a cluster whose Client was closed behind our back; else the defaults."""
    if _own is None:
        return {}
    return {
        "n_workers": _own.settings.n_workers,
        "memory_limit": _own.settings.memory_limit,
        "dashboard_address": _own.settings.dashboard_address,
    }


def _checked(n_workers: Any, memory_limit: Any, dashboard_address: Any) -> _Settings:
    if n_workers is None:
        n_workers = CPU_COUNT
    if not isinstance(n_workers, int) or isinstance(n_workers, bool) or n_workers < 1:
        raise InputError(
            f"n_workers is {safe_repr(n_workers)}; it takes a whole number from 1, as in"
            " start(n_workers=4), or None for one a core"
        )
    _check_memory_limit(memory_limit)
    _check_dashboard_address(dashboard_address)
    return _Settings(n_workers, memory_limit, dashboard_address)


def _check_memory_limit(memory_limit: Any) -> None:
    if memory_limit is None or memory_limit == "auto":
        return
    n_bytes = 0.0
    if isinstance(memory_limit, (int, float)) and not isinstance(memory_limit, bool):
        n_bytes = memory_limit
        if isinstance(memory_limit, float) and 0 < memory_limit <= 1:
            return  # a share of what there is
    elif isinstance(memory_limit, str):
        with contextlib.suppress(ValueError):
            n_bytes = parse_bytes(memory_limit)
    if 0 < n_bytes < LEAST_MEMORY:
        meant = f"{n_bytes:g} GiB" if n_bytes < 1_000 else "4 GiB"
        raise InputError(
            f"memory_limit is {safe_repr(memory_limit)}, which is {n_bytes:,.12g} bytes for each"
            f" worker, and none can live with less than {LEAST_MEMORY // 2**20} MiB; did you mean"
            f' start(memory_limit="{meant}")?'
        )
    if not n_bytes > 0:
        raise InputError(
            f"memory_limit is {safe_repr(memory_limit)}; it takes bytes or text for each worker, as"
            ' in start(memory_limit="4 GiB"), "auto", or None for no limit'
        )


def _check_dashboard_address(address: Any) -> None:
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not colon or ":" in host or not port.isdigit() or int(port) > 65535:
        raise InputError(
            f"dashboard_address is {safe_repr(address)}; it takes host:port, as in"
            ' start(dashboard_address="127.0.0.1:8787")'
        )
    if host not in ("127.0.0.1", "localhost"):
        warnings.warn(
            f"the dashboard will listen on {address}: it has no login, and everybody who reaches it"
            ' sees your inputs; use dashboard_address="127.0.0.1:8787" and a tunnel instead',
            stacklevel=7,  # the caller of `start`, behind its front door
        )


def _free_address(wanted: str) -> str:
    """The default port gives way when it is taken: nobody asked for it."""
    if _is_free(wanted):
        return wanted
    host = wanted.rpartition(":")[0]
    if wanted == DASHBOARD:
        return f"{host}:0"
    raise InputError(
        f"dashboard_address {wanted!r} is taken; close what listens there, or let any port be used"
        f' with start(dashboard_address="{host}:0")'
    )


def _is_free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """What hinders the start is raised once, by its cause, and Dask's tracebacks are not shown."""
    loggers = [logging.getLogger(name) for name in ("asyncio", "distributed", "tornado")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(_NEVER)
    around = sys.exc_info()[1]  # what is handled where the start was called
    failed = False
    try:
        yield
    except AtOnceError:
        raise
    except Exception as error:
        failed = True
        cause: BaseException = error
        while (before := cause.__cause__ or cause.__context__) not in (None, around):
            cause = before
        raise AtOnceError(
            f"the cluster cannot be started: {type(cause).__name__}: {cause}; see that the machine"
            " has memory, disk space and processes to spare, and run the same again, or pass a"
            " Client of another cluster, as in run(..., client=client)"
        ) from None
    finally:
        if failed:  # asyncio tells of tasks whose errors nobody asked for when they are collected
            gc.collect()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _ended_in_time() -> Iterator[None]:
    """In a process that `multiprocessing` started: it ends before that waits for its children.

    These are workers, which end with the cluster only.
    """
    at_exit = multiprocessing.util.Finalize(None, _close_at_exit, exitpriority=100)
    try:
        yield
    finally:
        at_exit.cancel()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """A Ctrl-C while the cluster starts or closes counts when it has: no half of it stays.

    Signals arrive in the main thread only; in another one there is nothing to wait.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # or somebody else sees to it: the run, or the program
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def _dismiss(dog: subprocess.Popen[bytes]) -> None:
    dog.kill()
    dog.wait()


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
