"""The library's own cluster, on loopback only, with TLS credentials made for this session."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import dask
from dask.utils import format_bytes
from distributed import Client, LocalCluster, Nanny

from at_once_dask.cluster import (
    dashboard,
    dask_internals,
    driver_watchdog,
    forkserver,
    machine,
    tls,
)
from at_once_dask.cluster.dashboard import Page
from at_once_dask.errors import AtOnceError, InputError
from at_once_dask.options import ClusterSettings
from at_once_dask.worker import processes
from at_once_dask.worker.dask_internals import exit_codes_read_once, may_be_started
from at_once_dask.worker.plugin import OwnWorkerPlugin
from at_once_dask.worker.processes import mark, worker_mark

T = TypeVar("T", Client, LocalCluster)

START_SECONDS = 30  # for the workers to come
START_LOOK_SECONDS = 1.0  # how often it is looked meanwhile why they do not
MEMORY_TOPIC = "worker-restart-memory"  # Dask's, for workers that are ended for memory
MEMORY_DEATHS = 2  # of each worker, while none has anything to do: then none will ever stay
HANG_UP_SECONDS = 2  # for the connections of browsers to close
_NEVER = logging.CRITICAL + 1

# Dask's settings for the own cluster, for as long as it lives: nannies read them at each restart.
_CONFIG = {
    # A worker starts in 0.2 s instead of 1.5 s: what it needs is imported already.
    "distributed.worker.multiprocessing-method": "forkserver",
    # Inputs may start processes of their own; `OwnWorkerPlugin` sees to it that these end.
    "distributed.worker.daemon": False,
    # An input may hold the GIL for minutes, and its worker is healthy.
    "distributed.scheduler.worker-ttl": None,
    # Some seconds after a worker has died Dask looks whether it is back, and else lets go of its
    # nanny: also when it is back, and has died again at that very moment.
    "distributed.deploy.lost-worker-timeout": "365 days",
    # Else each message to all workers opens a TLS connection to each of them, and closes it.
    "distributed.scheduler.reuse-broadcast-comm": True,
    # What looks on in an idle worker twenty to a hundred times a second costs 2.5 % of a core. The
    # dashboard's page of the profile still has two samples a second of each worker.
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.worker.profile.interval": "500ms",
    "distributed.worker.profile.cycle": "5s",
    # For its own developers Dask keeps the last 1,000 messages to each worker, with all inputs.
    "distributed.admin.low-level-log-length": 16,
    # A paused worker may never wake; one that holds too much is ended, and its input is named.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
}


def _config(n_workers: int) -> dict[str, Any]:
    """Dask's settings for so many workers: together, nannies look at memory 250 times a second."""
    milliseconds = max(100, 4 * n_workers)
    return _CONFIG | {"distributed.worker.memory.monitor-interval": f"{milliseconds}ms"}


class OwnCluster:
    """The own cluster while it runs: its Client, and what must be undone at the end."""

    def __init__(self, settings: ClusterSettings, page: Page, at_exit: Callable[[], None]) -> None:
        assert settings.n_workers is not None  # they were checked
        self.settings = settings
        self.n_workers = settings.n_workers
        self.page = page
        self._at_exit = at_exit
        self._undo = contextlib.ExitStack()
        try:
            with interrupts_wait():
                self._prepare()
                with _one_error():
                    self._cluster = self._to_close(self._start())
                self._undo.enter_context(dashboard.build_on_demand(self._cluster.scheduler, page))
                self._undo.callback(self._hang_up)
                self.client: Client = self._to_close(self._connect())
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """All that the cluster needs around it."""
        forkserver.start()
        machine.check(self.n_workers)
        self._dashboard_address = _free_address(self.settings.dashboard_address)
        # The watchdog is there before the folder is, and until it is gone: whenever the driver is
        # killed, the folder is removed.
        self.scratch = os.path.join(tempfile.gettempdir(), f"at_once_dask-{secrets.token_hex(8)}")
        dog = driver_watchdog.watch("=".join(processes.mark()), self.scratch, forkserver.folder())
        self._undo.callback(_dismiss, dog)
        os.mkdir(self.scratch, mode=0o700)
        self._undo.callback(shutil.rmtree, self.scratch, ignore_errors=True)
        self._groups = _groups_folder(self.scratch)
        # In a process that `multiprocessing` started: before that waits for its children, among
        # which are the workers, which end with the cluster only.
        finalizer = multiprocessing.util.Finalize(None, self._at_exit, exitpriority=100)
        self._undo.callback(finalizer.cancel)
        self._undo.enter_context(may_be_started())
        self._undo.enter_context(exit_codes_read_once())
        self._preparation = forkserver.keep_main_out_of_workers()
        self._undo.callback(self._preparation.undo)
        self._config = dask.config.set(_config(self.n_workers) | dashboard.link_setting())
        self._undo.enter_context(self._config)

    def _start(self) -> LocalCluster:
        dask_internals.import_nothing_to_find_out()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            # Where there is no network; the address is only a name, among those of this process.
            warnings.filterwarnings("ignore", message="Couldn't detect a suitable IP address")
            # Where many start at once; nobody can do anything about it.
            warnings.filterwarnings("ignore", message="Creating scratch directories")
            return LocalCluster(
                n_workers=self.n_workers,
                threads_per_worker=1,
                memory_limit=self.settings.memory_limit,
                host="127.0.0.1",
                security=tls.temporary(),
                dashboard_address=self._dashboard_address,
                worker_dashboard_address=None,
                worker_class=OwnNanny,
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
                silence_logs=logging.CRITICAL,  # the run itself reports what matters
            )

    def _connect(self) -> Client:
        """The Client: it is in the scheduler's process, and on its event loop."""
        client = Client(
            dask_internals.client_address(self._cluster),
            loop=self._cluster.loop,
            security=self._cluster.security,
            set_as_default=False,
        )
        client.cluster = self._cluster
        return client

    def _to_close(self, opened: T) -> T:
        """Close it at the end, with its event loop's thread."""
        self._undo.callback(dask_internals.stop_loop, opened)
        return self._undo.enter_context(contextlib.closing(opened))

    def wait_for_workers(self) -> None:
        """Workers that were ended are being replaced: the next run has all of them again."""
        self.revive()
        since, end = time.time(), time.monotonic() + START_SECONDS
        while time.monotonic() < end and not self._come(START_LOOK_SECONDS):
            self.check_memory(since)
        if not self.client.nthreads():
            raise AtOnceError(
                f"no worker could be started within {START_SECONDS} s; see that the machine has"
                " memory, disk space and processes to spare, call at_once_dask.close(), and run the"
                " same again"
            )

    def _come(self, seconds: float) -> bool:
        """Whether all workers have come after some `seconds`."""
        try:
            self.client.wait_for_workers(self.n_workers, timeout=seconds)
        except TimeoutError:
            return False
        return True

    def check_memory(self, since: float) -> None:
        """Raise when all that came were ended for memory before they had done anything."""
        events = self.client.get_events(MEMORY_TOPIC)
        held = [event["rss"] for at, event in events if at > since]
        if len(held) < MEMORY_DEATHS * self.n_workers:
            return
        limits = {nanny.memory_manager.memory_limit for nanny in self._cluster.workers.values()}
        raise AtOnceError(
            "no worker can start: each is ended for memory before it has started anything, for it"
            f" holds {format_bytes(max(held))} and may hold {format_bytes(max(limits))}; allow"
            ' more, as with at_once_dask.close() and at_once_dask.start(memory_limit="1 GiB"), and'
            " run the same again"
        )

    def revive(self) -> None:
        """A nanny that could not replace its worker has given up: another one takes its place."""
        workers = self._cluster.workers
        given_up = [
            n for n, nanny in list(workers.items()) if nanny.status in dask_internals.GIVEN_UP
        ]
        for name in given_up:
            workers.pop(name, None)
        if len(workers) < self.n_workers:
            self._cluster.scale(self.n_workers)

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

    def known(self) -> dict[str, Worker]:
        """The workers, as the scheduler knows them, which is here: nobody is asked."""
        return {
            state.address: Worker(
                threads=state.nthreads,
                paused=state.status.name != "running",
                scratch=os.path.dirname(state.local_directory),
                nanny=state.nanny,
                directory=state.local_directory,
            )
            for state in dask_internals.worker_states(self._cluster)
        }

    @property
    def scheduler(self) -> Any:
        return self._cluster.scheduler

    def nannies(self) -> dict[str, Nanny]:
        """By address; they are here, too."""
        return {nanny.address: nanny for nanny in list(self._cluster.workers.values())}

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
            close, scheduler = dask_internals.close_connections, self._cluster.scheduler
            self._cluster.sync(close, scheduler, callback_timeout=HANG_UP_SECONDS)

    def close(self) -> None:
        self._undo.close()

    def forget(self) -> None:
        """In a child that was forked: neither it nor Dask touches at its end what is another's."""
        dask_internals.forget_cluster(self.client, self._cluster)
        self._config.__exit__(None, None, None)
        self._preparation.undo()


class OwnNanny(Nanny):
    """Keeps a process of the own cluster; lives in the driver."""

    def __init__(self, *args: Any, groups: str, **kwargs: Any) -> None:
        self._groups = tempfile.mkdtemp(dir=groups)
        super().__init__(*args, plugins=(OwnWorkerPlugin(self._groups),), **kwargs)
        dask_internals.watch_nothing(self)
        self.pre_spawn_env = {}  # would stay in the driver's environment; see forkserver

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        # However the worker ended, and however early: its file tells its number, Dask no more. At
        # once: later that may be another process's.
        for group in driver_watchdog.groups(self._groups):
            processes.end_group(group)
            _end_what_worker_started(group)
            with contextlib.suppress(OSError):
                os.unlink(processes.group_file(self._groups, group))
        super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Worker:
    """A worker, as the scheduler knows it.

    Attributes
    ----------
    threads : int
    paused : bool
        Alive, but it begins nothing: it was told to go, or Dask finds its memory too full.
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

    @classmethod
    def of(cls, known: dict[str, Any]) -> Worker:
        """From what the scheduler says of it."""
        return cls(
            threads=known["nthreads"],
            paused=known["status"] != "running",
            scratch=os.path.dirname(known["local_directory"]),
            nanny=known.get("nanny"),
            directory=known["local_directory"],
        )


def _free_address(wanted: str) -> str:
    """The default port gives way when it is taken: nobody asked for it."""
    if _is_free(wanted):
        return wanted
    host = wanted.rpartition(":")[0]
    if wanted == ClusterSettings.dashboard_address:
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
    """Raise once, by its cause, what hinders the start; Dask's tracebacks are not shown."""
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
def interrupts_wait() -> Iterator[None]:
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


def _end_what_worker_started(pid: int) -> None:
    """End what worker `pid` of this driver has left in groups and sessions of their own.

    A process that was forked, made a session of its own and did not call ``exec`` is not found.
    """
    driver_watchdog.end_marked(worker_mark(mark()[1], pid))


def _groups_folder(scratch: str) -> str:
    """Made in the cluster's folder, for the files of its workers' groups."""
    folder = os.path.join(scratch, driver_watchdog.GROUPS)
    os.mkdir(folder)
    return folder
