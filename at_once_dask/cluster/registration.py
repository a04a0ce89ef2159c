"""Brings a run to the workers and their nannies, also to those that come later.

The plugin in the scheduler does it, at once for each worker that comes; here is known what it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import pickle
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from distributed import Client

from at_once_dask.cluster import dask_internals, versions
from at_once_dask.cluster.connect import Cluster
from at_once_dask.cluster.dask_internals import listed
from at_once_dask.cluster.interrupts import Interrupts
from at_once_dask.cluster.own import Worker
from at_once_dask.cluster.to_hosts import ToHosts
from at_once_dask.errors import AtOnceError, InputError
from at_once_dask.protocol.events import WorkerMet
from at_once_dask.protocol.host_files import HostFiles
from at_once_dask.worker import package
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
        self._hosts = ToHosts(cluster.client, plugin.run)
        self._plugin = plugin
        self._interrupts = interrupts
        self._notes = _Notes(cluster, note)
        self._connection = _Connection(cluster.client)
        self.known: dict[str, Worker] = {}
        self.occupied: set[str] = set()
        self.there: dict[str, Worker] = {}
        self._looked = -math.inf
        self._since = time.time()
        self._begun: RunSchedulerPlugin | None = None

    @property
    def _client(self) -> Client:
        return self._cluster.client

    def introduce(self, plugin: RunPlugin, files: HostFiles) -> None:
        """Bring `plugin` to the workers, with what they share; the slow ones join later."""
        self._plugin.shared, self._hosts.parts = files.shared, files.to_bring
        luggage = Luggage(
            topic=self._plugin.topic,
            worker=_sealed(plugin),
            nanny=_sealed(self._plugin),
            python=dask_internals.PYTHON,
            version=package.version(),
        )
        met, self.there = self._begin(RunSchedulerPlugin(luggage, self._client.id))
        self._looked = time.monotonic()
        versions.refuse(met)
        self._client.sync(self._hosts.prepare_all, met)
        if self._hosts.error is not None:
            raise self._hosts.error
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
            raise versions.of_scheduler(self._client, error) from error
        return met, {address: Worker.of(found) for address, found in there.items()}

    def met(self, one: WorkerMet) -> None:
        """The scheduler has brought the run to a worker, or cannot; on the event loop."""
        self._looked = -math.inf
        if one.version is None and one.error is None:
            self._hosts.prepare_soon(one)
        else:
            self._notes.refuse(one)

    def workers(self, is_at_work: bool) -> dict[str, Worker]:
        """Who lives, by address; a scheduler that is slow to answer has changed nothing."""
        if self._cluster.own or time.monotonic() - self._looked > FRESH_SECONDS:
            self._look(is_at_work)
        if self._hosts.error is not None:
            raise self._hosts.error
        self.known |= self.there
        self._notes.look(self.there)
        for address in filter(lambda a: self._is_unwatched(self.there[a]), self.there):
            self._notes.once(
                address, f"the run goes on without a worker: {self._no_nanny(address)}"
            )
        return {address: self._as_met(address, w) for address, w in self.there.items()}

    def _look(self, is_at_work: bool) -> None:
        self._connection.check()
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

    def _as_met(self, address: str, worker: Worker) -> Worker:
        """It takes partitions from when it was met; what still runs there starts nothing new."""
        ready = worker.ready and self._hosts.ready.get(address) == worker.directory
        gets_nothing = address in self.occupied or self._is_unwatched(worker)
        return replace(worker, ready=ready, paused=worker.paused or gets_nothing)

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


class _Connection:
    """The connection to the scheduler."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._was_there = time.monotonic()

    def check(self) -> None:
        """Raise when it is lost for good.

        Dask's client takes its time to come back; but never does it to a scheduler that has ended.
        """
        if self._client.status not in ALIVE:
            raise connection_lost()
        if self._client.status == "running":
            self._was_there = time.monotonic()
        elif time.monotonic() - self._was_there > REFUSED_SECONDS:
            if dask_internals.scheduler_has_ended(self._client):
                raise connection_lost()


class _Notes:
    """Tells the user of workers that are given nothing, and when there are none."""

    def __init__(self, cluster: Cluster, note: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._note = note
        self._noted: set[str] = set()
        self._refused: list[WorkerMet] = []
        self._seen_some = time.monotonic()

    def refuse(self, one: WorkerMet) -> None:
        """A worker came later, and cannot take the run; from any thread."""
        self._refused.append(one)

    def look(self, there: Collection[str]) -> None:
        """Say what is new; these workers are there."""
        while self._refused:
            one = self._refused.pop()
            text = f"the run goes on without the worker {one.worker}, and others like it: "
            self.once(one.version or str(one.error), text + versions.why_not(one))
        if there:
            self._seen_some = time.monotonic()
        elif time.monotonic() - self._seen_some > EMPTY_SECONDS:
            how = "" if self._cluster.adapts else f"; {self._cluster.how_to_start}"
            self.once("", f"the cluster has no workers, and the run waits for some{how}")

    def once(self, what: str, text: str) -> None:
        if what not in self._noted:
            self._noted.add(what)
            self._note(text)


def _sealed(plugin: object) -> bytes:
    return pickle.dumps(Sealed(package.version(), pickle.dumps(plugin)))


def connection_lost() -> AtOnceError:
    return AtOnceError(
        "the connection to the Dask scheduler is lost; see that it runs and can be reached, and run"
        " the same again with a new Client: what is done is skipped then"
    )
