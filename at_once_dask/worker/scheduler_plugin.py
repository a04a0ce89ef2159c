"""In the scheduler: brings a run to each worker and its nanny, and makes them forget it.

What the scheduler does by itself takes no message from a driver that may be far away, or dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from distributed import SchedulerPlugin

from at_once_dask.errors import AtOnceError
from at_once_dask.protocol import events
from at_once_dask.protocol.events import WorkerGone, WorkerMet
from at_once_dask.worker import dask_internals, package

MEET_SECONDS = 3.0  # for workers to take the run, before it goes on without the slow ones
ABSENT_SECONDS = 40.0  # for a driver to come back, whose connection is lost
ANSWER_SECONDS = 0.5  # for the nanny of a worker that is gone; then its machine counts as lost
INQUIRIES = 5  # of a nanny that is there, and so reports
FORGET_SECONDS = 2.0  # for workers and nannies to forget a run


_OTHER_VERSION = re.compile(rf"AtOnceError\('{package.NAME} (.+)'\)")  # as `opened` says it


@dataclass
class Luggage:
    """The plugins that each worker and its nanny get.

    Attributes
    ----------
    topic : str
        The name of all that belongs to the run.
    worker, nanny : bytes
        The plugins, pickled and sealed. They pass through the scheduler unopened.
    python : (int, int)
        The driver's version of Python: functions cross as its bytecode.
    version : str
        That of the driver's at_once_dask.
    """

    topic: str
    worker: bytes
    nanny: bytes
    python: tuple[int, int]
    version: str


class Sealed:
    """A pickle that only one version of at_once_dask opens."""

    def __init__(self, version: str, pickled: bytes) -> None:
        self._parts = version, pickled

    def __reduce__(self) -> Any:
        return opened, self._parts


def opened(version: str, pickled: bytes) -> Any:
    """Open it; the name and place of this function are part of what crosses."""
    if version != package.version():
        raise AtOnceError(f"{package.NAME} {package.version()}")
    return pickle.loads(pickled)


class RunSchedulerPlugin(SchedulerPlugin):
    """Keeps one run known to all workers, later ones too, for as long as its driver lives.

    Parameters
    ----------
    luggage : Luggage
    client : str
        The driver, as the scheduler calls it.

    Attributes
    ----------
    here : callable
        Gives the nannies that are in the scheduler's process, by address.
    """

    here: Callable[[], Mapping[str, Any]] = dict

    def __init__(self, luggage: Luggage, client: str) -> None:
        self._luggage = luggage
        self._client = client
        self._scheduler: Any = None
        self._meetings: dict[str, asyncio.Task[None]] = {}
        self._met: dict[str, WorkerMet] = {}
        self._nannies: dict[str, str] = {}  # that have their plugin, by worker
        self._inquiries: set[asyncio.Task[None]] = set()
        self._absences = 0  # of the driver
        self._has_begun = self._is_over = False

    async def begin(self, scheduler: Any, patience: float = MEET_SECONDS) -> list[WorkerMet]:
        """Meet all who are there; those that take their time join later."""
        self._scheduler = scheduler
        scheduler.add_plugin(self, name=self._luggage.topic)
        for address in list(scheduler.workers):
            self._meet_soon(address)
        if self._meetings:
            await asyncio.wait(set(self._meetings.values()), timeout=patience)
        self._has_begun = True
        return list(self._met.values())

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self._meet_soon(worker)

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """See whether its nanny is left, which says what became of it; else nobody will."""
        met = self._met.pop(worker, None)
        meeting = self._meetings.pop(worker, None)
        if meeting is not None:
            meeting.cancel()
        nanny = self._nannies.get(worker)
        if met is not None and not self._is_over and nanny not in self.here():
            inquiry = asyncio.ensure_future(self._inquire(met, nanny))
            self._inquiries.add(inquiry)
            inquiry.add_done_callback(self._inquiries.discard)

    async def _inquire(self, met: WorkerMet, nanny: str | None) -> None:
        """A nanny reports a death by itself: it is only asked whether it is there."""
        with contextlib.suppress(OSError):
            for _ in range(INQUIRIES if nanny is not None else 0):
                await asyncio.wait_for(self._scheduler.rpc(nanny).identity(), ANSWER_SECONDS)
                await asyncio.sleep(ANSWER_SECONDS)
            if nanny is not None:
                return
        if not self._is_over:
            self._nannies.pop(met.worker, None)
            self._tell(WorkerGone(met.worker, met.directory))

    def remove_client(self, scheduler: Any, client: str) -> None:
        """The driver is gone, or has lost its connection: then it comes back under its name."""
        if client == self._client and not self._is_over:
            self._absences += 1
            scheduler.loop.call_later(ABSENT_SECONDS, self._forget_unless_back, self._absences)

    async def _forget_unless_back(self, absence: int) -> None:
        if absence == self._absences and self._client not in self._scheduler.clients:
            await self.forget(FORGET_SECONDS)

    async def forget(self, patience: float) -> None:
        """Workers, nannies and the scheduler forget the run.

        A nanny that is just replacing its worker is not among those that the scheduler knows, so
        each that was met is asked; but nobody waits for it, for it may be gone. The topic comes
        last: an event that arrives meanwhile would make it again.
        """
        if self._is_over or self._scheduler is None:
            self._is_over = True
            return
        self._is_over = True
        scheduler, topic = self._scheduler, self._luggage.topic
        scheduler.remove_plugin(name=topic)
        took = {worker for worker, met in self._met.items() if met.version is None}
        known = took & scheduler.workers.keys()
        living = {self._nannies[worker] for worker in known & self._nannies.keys()}
        asked = [self._remove(worker) for worker in known]
        asked += [self._remove_from_nanny(nanny) for nanny in living]
        for nanny in set(self._nannies.values()) - living:
            _quietly(self._remove_from_nanny(nanny))
        try:
            if asked:
                await asyncio.wait(map(_quietly, asked), timeout=patience)
        finally:
            scheduler._broker._topics.pop(topic, None)

    def _remove(self, worker: str) -> Coroutine[Any, Any, Any]:
        remove = getattr(self._scheduler.rpc(worker), "plugin-remove")
        removed: Coroutine[Any, Any, Any] = remove(name=self._luggage.topic)
        return removed

    def _remove_from_nanny(self, nanny: str) -> Coroutine[Any, Any, Any]:
        there = self.here().get(nanny) or self._scheduler.rpc(nanny)
        removed: Coroutine[Any, Any, Any] = there.plugin_remove(name=self._luggage.topic)
        return removed

    def _meet_soon(self, address: str) -> None:
        if not self._is_over:
            self._meetings[address] = asyncio.ensure_future(self._meet(address))

    async def _meet(self, address: str) -> None:
        """Bring the run to a worker, and say what came of it."""
        state, error, version = self._scheduler.workers.get(address), None, None
        if state is None:  # it is gone again
            return
        try:
            version = self._other_python(state) or await self._bring(address, state.nanny)
        except OSError:  # it is gone again
            return
        except Exception as caught:
            error = str(caught)
        finally:
            if self._meetings.get(address) is asyncio.current_task():
                del self._meetings[address]
        if self._is_over:  # meanwhile
            _quietly(self._remove(address))
            if address in self._nannies:
                _quietly(self._remove_from_nanny(self._nannies[address]))
            return
        self._met[address] = met = WorkerMet(address, state.local_directory, version, error)
        if self._has_begun:
            self._tell(met)

    def _other_python(self, state: Any) -> str | None:
        """The version of its Python, where that does not understand the driver's functions."""
        there = state.versions.get("host", {}).get("python", "")
        mine = ".".join(map(str, self._luggage.python))
        return None if not there or there.startswith(f"{mine}.") else f"Python {there[:4]}"

    async def _bring(self, address: str, nanny: str | None) -> str | None:
        """Bring the plugins; what is another version there, or None."""
        topic, luggage = self._luggage.topic, self._luggage
        plugin = {"plugin": luggage.worker, "name": topic}
        asked = [self._with_package(address, "plugin-add", **plugin)]
        if nanny is not None:
            asked.append(self._add_to_nanny(nanny, address))
        try:
            await asyncio.gather(*asked)
        except RuntimeError as error:
            there = await self._version(address, str(error))
            if there == luggage.version:
                raise
            return f"{package.NAME} {there}"
        return None

    async def _add_to_nanny(self, nanny: str, address: str) -> None:
        """A worker that dies before its nanny is connected to it is never replaced."""
        topic, here = self._luggage.topic, self.here().get(nanny)
        if here is not None:
            await dask_internals.watch_worker(self._luggage.nanny, topic, address, here)
        else:
            arguments = self._luggage.nanny, topic, address
            await self._with_package(
                nanny,
                "run",
                function=pickle.dumps(dask_internals.watch_worker),
                args=pickle.dumps(arguments),
            )
        self._nannies[address] = nanny

    async def _with_package(self, address: str, op: str, **message: Any) -> None:
        """Call `op` there; where at_once_dask is not installed, send it along first."""
        try:
            await self._call(address, op, **message)
        except RuntimeError as error:
            if not package.is_missing(error):
                raise
            function, arguments = package.to_install()
            await self._call(address, "run", function=function, args=arguments)
            await self._call(address, op, **message)

    async def _call(self, address: str, op: str, **message: Any) -> Any:
        """Ask a worker or nanny; RuntimeError with the text of what it raised."""
        try:
            answer = await getattr(self._scheduler.rpc(address), op)(**message)
        except OSError:
            raise
        except Exception as error:  # which one it was a scheduler does not open
            raise RuntimeError(str(error)) from error
        if answer["status"] != "OK":
            raise RuntimeError(answer["exception_text"])
        return answer.get("result")

    async def _version(self, address: str, error: str) -> str:
        """The version of at_once_dask on a worker; one that is too old does not say it itself."""
        said = _OTHER_VERSION.search(error)
        if said is not None:
            return said[1]
        answer = await self._scheduler.rpc(address).versions(packages=[package.NAME])
        found: str = answer["packages"][package.NAME]
        return found

    def _tell(self, event: WorkerMet | WorkerGone) -> None:
        self._scheduler.log_event(self._luggage.topic, events.message(event))


async def begin(plugin: bytes, dask_scheduler: Any) -> tuple[list[WorkerMet], dict[str, Any]]:
    """Runs in the scheduler: meet all workers; what came of it, and which there are."""
    met = await pickle.loads(plugin).begin(dask_scheduler)
    return met, dask_scheduler.identity(n_workers=-1)["workers"]


async def forget(topic: str, patience: float, dask_scheduler: Any) -> None:
    """Runs in the scheduler: forget the run."""
    plugin = dask_scheduler.plugins.get(topic)
    if plugin is not None:
        await plugin.forget(patience)


def _quietly(asked: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
    """Wait for an answer that nobody needs; it may come when nobody waits any longer."""

    async def answered() -> None:
        with contextlib.suppress(Exception):
            await asked

    return asyncio.ensure_future(answered())
