"""Brings a run to the workers and their nannies, also to those that come later.

The plugin in the scheduler does it, at once for each worker that comes; here is known what it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from distributed import Client

from at_once_dask.cluster import dask_internals
from at_once_dask.cluster.connect import Cluster
from at_once_dask.cluster.dask_internals import listed
from at_once_dask.cluster.interrupts import Interrupts
from at_once_dask.cluster.own import Worker
from at_once_dask.errors import AtOnceError, InputError
from at_once_dask.protocol.events import WorkerMet
from at_once_dask.protocol.host_files import HostFiles
from at_once_dask.protocol.task import host_of
from at_once_dask.worker import host_job, package
from at_once_dask.worker.nanny_plugin import RunNannyPlugin
from at_once_dask.worker.plugin import RunPlugin
from at_once_dask.worker.scheduler_plugin import (
    FORGET_SECONDS,
    Luggage,
    RunSchedulerPlugin,
    Sealed,
)

REFUSED_SECONDS = 2.0  # that a scheduler does not listen; then it has ended
FRESH_SECONDS = 0.5  # that a look counts, unless it is known that something has changed
OWN_SECONDS = 1.0  # for own workers to take the run; one may still be at something
EMPTY_SECONDS = 2.0  # without workers, before it is said
BEGIN_SECONDS = 30.0  # for the scheduler to take the run
SILENT_SECONDS = 0.5  # for workers to forget a run, where somebody has not answered already
ALIVE = ("running", "connecting")


class Registration:
    """Which workers know the run, and are watched by their nannies.

    Parameters
    ----------
    cluster : Cluster
    plugin : RunNannyPlugin
        What each nanny gets.
    interrupts : Interrupts
    note : callable
        Called with what the user should know.

    Attributes
    ----------
    there : dict of str to Worker
        By address, at the last look.
    known : dict of str to Worker
        By address; also those that are gone.
    occupied : set of str
        Workers that could not be ended when a run stopped.
    """

    def __init__(
        self,
        cluster: Cluster,
        plugin: RunNannyPlugin,
        interrupts: Interrupts,
        note: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._to_hosts = ToHosts(cluster.client, plugin.run)
        self._plugin = plugin
        self._interrupts = interrupts
        self._note = note
        self.known: dict[str, Worker] = {}
        self.occupied: set[str] = set()
        self.there: dict[str, Worker] = {}
        self._looked = -math.inf
        self._since = time.time()
        # By address, the directory of the process: what was met stays so as long as that lives.
        self._met: dict[str, str] = {}
        self._refused: dict[str, WorkerMet] = {}  # that came later, and cannot take the run
        self._noted: set[str] = set()
        self._seen_some = self._connected = time.monotonic()
        self._preparations: set[asyncio.Future[None]] = set()
        self._error: AtOnceError | None = None
        self._begun: RunSchedulerPlugin | None = None

    @property
    def _client(self) -> Client:
        return self._cluster.client

    def introduce(self, plugin: RunPlugin, files: HostFiles) -> None:
        """Bring `plugin` to the workers, with what they share; the slow ones join later."""
        self._plugin.shared, self._to_hosts.parts = files.shared, files.to_bring
        luggage = Luggage(
            topic=self._plugin.topic,
            worker=_sealed(plugin),
            nanny=_sealed(self._plugin),
            python=dask_internals.PYTHON,
            version=package.version(),
        )
        met, self.there = self._begin(RunSchedulerPlugin(luggage, self._client.id))
        self._looked = time.monotonic()
        self._refuse(luggage, met)
        self._client.sync(self._prepare_all, met, callback_timeout=None)
        if self._error is not None:
            raise self._error
        self.known |= self.there
        if self.there and all(map(self._is_unwatched, self.there.values())):
            raise InputError(self._no_nanny(min(self.there)))

    def _begin(self, plugin: RunSchedulerPlugin) -> tuple[list[WorkerMet], dict[str, Worker]]:
        """Give it to the scheduler; who took the run so far, and who is there."""
        self._begun = plugin
        scheduler = self._cluster.scheduler
        if scheduler is not None:
            plugin.here = self._cluster.nannies
            met = self._client.sync(plugin.begin, scheduler, OWN_SECONDS)
            return met, self._cluster.workers()
        try:
            met, there = self._client.sync(
                dask_internals.begin_run,
                self._client,
                _sealed(plugin),
                callback_timeout=BEGIN_SECONDS,
            )
        except OSError as error:
            raise connection_lost() from error
        except Exception as error:
            raise self._scheduler_error(error) from error
        return met, {address: Worker.of(found) for address, found in there.items()}

    def _scheduler_error(self, error: Exception) -> AtOnceError:
        """Why the scheduler cannot take the run."""
        ask = partial(self._client.sync, callback_timeout=BEGIN_SECONDS)
        python = ".".join(map(str, ask(dask_internals.python_of_scheduler, self._client)))
        there = f"Python {python} and no at_once_dask"
        with contextlib.suppress(Exception):
            version = ask(dask_internals.version_of_scheduler, self._client)
            if version == package.version():
                return AtOnceError(
                    f"the scheduler cannot take the run: {type(error).__name__}: {error}; see that"
                    " at_once_dask is installed there with all it needs, start it anew, and run the"
                    " same again"
                )
            there = f"Python {python} and at_once_dask {version}"
        return InputError(
            f"the scheduler has {there}, and this process Python"
            f" {'.'.join(map(str, dask_internals.PYTHON))} and at_once_dask {package.version()};"
            f" {_SAME} and call run() again"
        )

    def _refuse(self, luggage: Luggage, met: list[WorkerMet]) -> None:
        """Nothing runs where some workers cannot take the run: half of a cluster is a mistake."""
        others = {one.worker: one.version for one in met if one.version is not None}
        if others:
            raise InputError(_other_versions(luggage, others))
        for one in met:
            if one.error is not None:
                raise _cannot_take(one)

    def met(self, one: WorkerMet) -> None:
        """The scheduler has brought the run to a worker, or cannot; on the event loop."""
        self._looked = -math.inf
        if one.version is None and one.error is None:
            preparation = asyncio.ensure_future(self._prepare(one))
            self._preparations.add(preparation)
            preparation.add_done_callback(self._preparations.discard)
        else:
            self._refused[one.worker] = one

    async def _prepare_all(self, met: list[WorkerMet]) -> None:
        await asyncio.gather(*map(self._prepare, met))

    async def _prepare(self, one: WorkerMet) -> None:
        """Its host has what is large; from now on it takes partitions."""
        try:
            await self._to_hosts.bring(one.worker, one.directory)
        except (OSError, KeyError, ValueError):  # it is gone again
            return
        except AtOnceError as error:
            self._error = error
            return
        self._met[one.worker] = one.directory

    def workers(self, is_at_work: bool) -> dict[str, Worker]:
        """Who lives, by address; a scheduler that is slow to answer has changed nothing."""
        if self._cluster.own or time.monotonic() - self._looked > FRESH_SECONDS:
            self._look(is_at_work)
        if self._error is not None:
            raise self._error
        self.known |= self.there
        self._note_those_without_work()
        return {address: self._as_met(address, w) for address, w in self.there.items()}

    def _look(self, is_at_work: bool) -> None:
        self._see_connection()
        if self._client.status != "running":
            return
        try:
            with self._interrupts.at_once():
                self.there = self._cluster.workers()
                self._looked = time.monotonic()
                if not is_at_work:
                    self._cluster.check_starts(self._since)
        except OSError as error:
            if self._client.status not in ALIVE:
                raise connection_lost() from error

    def _see_connection(self) -> None:
        """Dask's client takes its time to come back; but not to a scheduler that has ended."""
        if self._client.status not in ALIVE:
            raise connection_lost()
        if self._client.status == "running":
            self._connected = time.monotonic()
        elif time.monotonic() - self._connected > REFUSED_SECONDS:
            if dask_internals.scheduler_has_ended(self._client):
                raise connection_lost()

    def _as_met(self, address: str, worker: Worker) -> Worker:
        """It takes partitions from when it was met; what still runs there starts nothing new."""
        ready = worker.ready and self._met.get(address) == worker.directory
        gets_nothing = address in self.occupied or self._is_unwatched(worker)
        return replace(worker, ready=ready, paused=worker.paused or gets_nothing)

    def _note_those_without_work(self) -> None:
        """One that is given nothing would puzzle who counts the workers; and none at all."""
        self._note_emptiness()
        for address, worker in self.there.items():
            if self._is_unwatched(worker) and address not in self._noted:
                self._noted.add(address)
                self._note(f"the run goes on without a worker: {self._no_nanny(address)}")
        for address, one in list(self._refused.items()):
            del self._refused[address]
            what = one.version or one.error or ""
            if what not in self._noted:
                self._noted.add(what)
                self._note(
                    f"the run goes on without the worker {address}, and others like it:"
                    f" {_why_not(what)}"
                )

    def _note_emptiness(self) -> None:
        if self.there:
            self._seen_some = time.monotonic()
        elif time.monotonic() - self._seen_some > EMPTY_SECONDS and "" not in self._noted:
            self._noted.add("")
            how = "" if self._cluster.adapts else f"; {self._cluster.how_to_start}"
            self._note(f"the cluster has no workers, and the run waits for some{how}")

    def _is_unwatched(self, worker: Worker) -> bool:
        """Whether nobody could hold it to the time limit."""
        return worker.nanny is None and self._plugin.timeout is not None

    def _no_nanny(self, worker: str) -> str:
        return (
            f"timeout={self._plugin.timeout:g} needs a nanny, which ends a worker that takes"
            f" longer, and the worker {worker} has none; start it without --no-nanny, or leave"
            " timeout out: run(inp_list, check_inp, process_inp, client=client)"
        )

    def end(self) -> None:
        """Workers, nannies and the scheduler forget the run."""
        if self._begun is None:
            return
        patience = SILENT_SECONDS if self.occupied else FORGET_SECONDS
        with contextlib.suppress(OSError, ValueError, KeyError):
            if self._cluster.scheduler is not None:
                self._client.sync(self._begun.forget, patience)
            else:
                dask_internals.end_run(self._client, self._plugin.topic, patience)

    async def left(self, workers: set[str]) -> None:
        """Wait until the scheduler knows that they are gone: it would still speak to them."""
        while workers & (await listed(self._client)).keys():
            await asyncio.sleep(0.02)


class ToHosts:
    """Brings what is large in a job to each host of a borrowed cluster, once.

    Attributes
    ----------
    parts : sequence of bytes or memoryview
        What is to be brought; empty where nothing is.
    """

    def __init__(self, client: Client, run: str) -> None:
        self.parts: Sequence[bytes | memoryview] = ()
        self._client = client
        self._run = run
        self._locks: defaultdict[tuple[str | None, str], asyncio.Lock]
        self._locks = defaultdict(asyncio.Lock)  # by host, and folder there

    async def bring(self, address: str, directory: str) -> None:
        """See that the file is there which this worker will open."""
        if not self.parts:
            return
        scratch = os.path.dirname(directory)
        async with self._locks[host_of(address), scratch]:
            if await self._there(host_job.is_there, address):
                return
            try:
                await self._there(host_job.put, address, list(map(bytes, self.parts)))
            except OSError as error:
                if error.errno is None:  # it is no disk that is full, but a worker that is gone
                    raise
                raise AtOnceError(
                    f"what the functions take along cannot be put into a file on the host of"
                    f" {address}: {error}; see that there is space in {scratch}, and run the"
                    " same again"
                ) from error

    async def _there(self, function: Callable[..., Any], address: str, *more: Any) -> Any:
        """Call `function` in the worker."""
        answers = await self._client.run(
            function, self._run, *more, workers=[address], on_error="raise"
        )
        return answers[address]


def _sealed(plugin: object) -> bytes:
    return pickle.dumps(Sealed(package.version(), pickle.dumps(plugin)))


def _other_versions(luggage: Luggage, others: dict[str, str]) -> str:
    """The error of workers whose Python or at_once_dask is another one."""
    python = ".".join(map(str, luggage.python))
    workers = ", ".join(f"{worker} has {there}" for worker, there in sorted(others.items()))
    return (
        f"this process has Python {python} and at_once_dask {luggage.version}, and the worker"
        f" {workers}; {_SAME} and call run() again"
    )


_SAME = (
    "functions cross as code of one Python, and both sides must be of one at_once_dask; start the"
    " workers with the driver's versions, or the driver with theirs,"
)


def _why_not(what: str) -> str:
    """Why a worker that came later gets nothing."""
    if what.startswith(("Python ", f"{package.NAME} ")):
        return f"it has {what}; {_SAME} for it to be used"
    return f"{what}; see that at_once_dask is installed there with all it needs"


def _cannot_take(one: WorkerMet) -> AtOnceError:
    return AtOnceError(
        f"the worker {one.worker} cannot take the run: {one.error}; see that at_once_dask is"
        " installed there with all it needs (pip install at_once_dask), start the cluster anew,"
        " and run the same again"
    )


def connection_lost() -> AtOnceError:
    return AtOnceError(
        "the connection to the Dask scheduler is lost; see that it runs and can be reached, and run"
        " the same again with a new Client: what is done is skipped then"
    )
