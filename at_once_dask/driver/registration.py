"""Brings a run to the workers and their nannies, also to those that come later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from distributed import Client, Nanny
from distributed.comm.addressing import get_address_host

from at_once_dask.cluster import dask_internals
from at_once_dask.cluster.connect import Cluster
from at_once_dask.cluster.dask_internals import FORGET_SECONDS, listed
from at_once_dask.cluster.own import Worker
from at_once_dask.driver.interrupts import Interrupts
from at_once_dask.errors import AtOnceError, InputError
from at_once_dask.protocol.host_files import HostFiles
from at_once_dask.worker import host_job
from at_once_dask.worker.nanny_plugin import RunNannyPlugin
from at_once_dask.worker.plugin import RunPlugin

ATTEMPTS = 10  # to bring a run to the workers, while some of them die
MEET_SECONDS = 1.0  # for nannies to take their plugin, before the run goes on without them
MEET_PAUSE_SECONDS = 0.05  # between two questions to a nanny that is replacing its worker
SILENT_SECONDS = 0.5  # for them to forget a run, where somebody has not answered already
_ALIVE = ("running", "connecting")


class Registration:
    """Which workers know the run, and are watched by their nannies.

    Dask's own way of bringing a plugin to nannies goes by the workers, and passes by those that are
    replacing theirs. So each nanny is asked by the address of its worker.

    Parameters
    ----------
    cluster : Cluster
    plugin : RunNannyPlugin
        What each nanny gets.
    interrupts : Interrupts
    note : callable
        Called with what the user should know.
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
        self.known: dict[str, Worker] = {}  # also those that are gone
        self.occupied: set[str] = set()  # workers that could not be ended when a run stopped
        self._there: dict[str, Worker] = {}  # at the last look
        self._since = time.time()
        # By address, and the directory of the process: what was met stays so as long as that lives.
        self._asked: dict[str, str] = {}
        self._met: dict[str, str] = {}  # workers that are watched, or have no nanny
        self._noted: set[str] = set()  # workers that nobody could hold to the time limit
        self._meetings: set[asyncio.Future[None]] = set()
        self._refused: AtOnceError | None = None
        self._is_over = False

    @property
    def _client(self) -> Client:
        return self._cluster.client

    def introduce(self, plugin: RunPlugin, files: HostFiles) -> None:
        """Bring `plugin` to the workers, with what they share; the slow ones join later."""
        self._plugin.shared, self._to_hosts.parts = files.shared, files.to_bring
        self._register(plugin)
        workers: dict[str, Worker] = {}
        with contextlib.suppress(OSError):  # one that has no time to answer is asked again
            workers = self._cluster.workers()
        self._client.sync(self._meet_all, workers)
        if self._refused is not None:
            raise self._refused
        if workers and all(map(self._is_unwatched, workers.values())):
            raise InputError(self._no_nanny(min(workers)))

    def _register(self, plugin: RunPlugin) -> None:
        for attempt in range(ATTEMPTS):
            try:
                self._client.register_plugin(plugin, name=self._plugin.topic)
                return
            except ModuleNotFoundError as error:
                raise InputError(
                    f"the workers of this cluster cannot import {error.name}; install it there, for"
                    " at_once_dask itself with pip install at_once_dask, and call run() again"
                ) from error
            except OSError as error:  # a worker died just now; the next one gets it by itself
                if self._client.status != "running":
                    raise connection_lost() from error
                if attempt == ATTEMPTS - 1:
                    raise AtOnceError(
                        f"the run cannot be brought to the workers ({error}); see that they can be"
                        " reached and started, or start the cluster anew, and run the same again"
                    ) from error

    def workers(self, is_at_work: bool) -> dict[str, Worker]:
        """Who lives, by address; a scheduler that is slow to answer has changed nothing."""
        self._look(is_at_work)
        if self._refused is not None:
            raise self._refused
        self.known |= self._there
        self._note_unwatched()
        if self._strangers():
            loop: Any = self._client.loop
            loop.add_callback(self._meet_strangers)
        return {address: self._as_met(address, w) for address, w in self._there.items()}

    def _look(self, is_at_work: bool) -> None:
        if self._client.status not in _ALIVE:
            raise connection_lost()
        try:
            with self._interrupts.at_once():
                self._there = self._cluster.workers()
                if not is_at_work:
                    self._cluster.check_starts(self._since)
        except OSError as error:
            if self._client.status not in _ALIVE:
                raise connection_lost() from error

    def _strangers(self) -> list[tuple[str, Worker]]:
        """The workers whose nannies were not asked yet."""
        return [
            (address, worker)
            for address, worker in self._there.items()
            if worker.ready and self._asked.get(address) != worker.directory
        ]

    def _as_met(self, address: str, worker: Worker) -> Worker:
        """It takes partitions from when it was met; what still runs there starts nothing new."""
        ready = worker.ready and self._met.get(address) == worker.directory
        gets_nothing = address in self.occupied or self._is_unwatched(worker)
        return replace(worker, ready=ready, paused=worker.paused or gets_nothing)

    def _note_unwatched(self) -> None:
        """One that is given nothing would puzzle who counts the workers."""
        for address, worker in self._there.items():
            if self._is_unwatched(worker) and address not in self._noted:
                self._noted.add(address)
                self._note(f"the run goes on without a worker: {self._no_nanny(address)}")

    def _is_unwatched(self, worker: Worker) -> bool:
        """Whether nobody could hold it to the time limit."""
        return worker.nanny is None and self._plugin.timeout is not None

    def _no_nanny(self, worker: str) -> str:
        return (
            f"timeout={self._plugin.timeout:g} needs a nanny, which ends a worker that takes"
            f" longer, and the worker {worker} has none; start it without --no-nanny, or leave"
            " timeout out: run(inp_list, check_inp, process_inp, client=client)"
        )

    async def _meet_all(self, workers: dict[str, Worker]) -> None:
        self.known |= workers
        self._there = workers
        self._meet_strangers()
        await self._meetings_end(MEET_SECONDS)

    def _meet_strangers(self) -> None:
        here = self._cluster.nannies()
        for address, worker in self._strangers():
            self._asked[address] = worker.directory
            nanny = here.get(worker.nanny or "")
            meeting = asyncio.ensure_future(self._meet(address, worker, nanny))
            self._meetings.add(meeting)
            meeting.add_done_callback(self._meetings.discard)

    async def _meetings_end(self, timeout: float) -> None:
        if self._meetings:
            await asyncio.wait(set(self._meetings), timeout=timeout)

    async def _meet(self, address: str, worker: Worker, nanny: Nanny | None) -> None:
        """Put the plugin into its nanny, and wait until that is connected to it.

        A worker that dies before it is connected is never replaced.
        """
        if self._is_unwatched(worker):
            return
        try:
            if worker.nanny is not None:
                await self._have_watched(address, nanny)
            await self._to_hosts.bring(address, worker)
        except (OSError, KeyError, ValueError):  # it is gone again
            self._asked.pop(address, None)
            return
        except AtOnceError as error:
            self._refused = error
            return
        except Exception as error:
            self._refused = _unwatchable(address, error)
            return
        self._met[address] = worker.directory

    async def _have_watched(self, address: str, nanny: Nanny | None) -> None:
        watched = None
        while watched != address and self._client.status == "running" and not self._is_over:
            watched = await self._ask_nanny(address, nanny)
            if watched != address:
                await asyncio.sleep(MEET_PAUSE_SECONDS)

    async def _ask_nanny(self, address: str, nanny: Nanny | None) -> str | None:
        """Which worker it watches; one that is here is asked without a message."""
        if nanny is not None:
            plugin = copy(self._plugin)  # each has its own, as by message
            return await dask_internals.add_nanny_plugin(plugin, self._plugin.topic, nanny)
        answers = await self._client.run(
            dask_internals.add_nanny_plugin,
            self._plugin,
            self._plugin.topic,
            workers=[address],
            nanny=True,
            on_error="raise",
        )
        (watched,) = answers.values()
        found: str | None = watched
        return found

    def end(self) -> None:
        """Workers, nannies and the scheduler forget the run."""
        self._is_over = True
        patience = SILENT_SECONDS if self.occupied else FORGET_SECONDS
        with contextlib.suppress(OSError):
            self._client.sync(self._meetings_end, patience)  # or a plugin came after its end
        here = self._cluster.nannies()
        others = {known.nanny for known in self.known.values() if known.nanny} - here.keys()
        with contextlib.suppress(OSError, ValueError, KeyError):
            self._client.sync(dask_internals.forget_plugins, here.values(), self._plugin.topic)
            dask_internals.forget_run(self._client, self._plugin.topic, sorted(others), patience)

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

    async def bring(self, address: str, worker: Worker) -> None:
        """See that the file is there which this worker will open."""
        if not self.parts:
            return
        async with self._locks[get_address_host(address), worker.scratch]:
            if await self._there(host_job.is_there, address):
                return
            try:
                await self._there(host_job.put, address, list(map(bytes, self.parts)))
            except OSError as error:
                if error.errno is None:  # it is no disk that is full, but a worker that is gone
                    raise
                raise AtOnceError(
                    f"what the functions take along cannot be put into a file on the host of"
                    f" {address}: {error}; see that there is space in {worker.scratch}, and run the"
                    " same again"
                ) from error

    async def _there(self, function: Callable[..., Any], address: str, *more: Any) -> Any:
        """Call `function` in the worker."""
        answers = await self._client.run(
            function, self._run, *more, workers=[address], on_error="raise"
        )
        return answers[address]


def _unwatchable(address: str, error: Exception) -> AtOnceError:
    return AtOnceError(
        f"the nanny of {address} cannot watch it: {type(error).__name__}: {error}; see that"
        " at_once_dask is installed there (pip install at_once_dask), start the cluster anew, and"
        " run the same again"
    )


def connection_lost() -> AtOnceError:
    return AtOnceError(
        "the connection to the Dask scheduler is lost; start the cluster again, and run the same"
        " again with a new Client"
    )
