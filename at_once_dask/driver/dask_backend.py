"""The workers of a Dask cluster, for one run.

Everything that waits for the network does so on the client's event loop, so the dispatcher's loop
in the main thread never hangs on a worker that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import pickle
import queue
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import dask
from distributed import Client, Future
from toolz import valfilter, valmap
from tornado.ioloop import IOLoop

from at_once_dask.cluster import dask_internals
from at_once_dask.cluster.connect import Cluster
from at_once_dask.cluster.demand import Demand
from at_once_dask.cluster.interrupts import Interrupts
from at_once_dask.cluster.own import MEMORY_TOPIC, Worker
from at_once_dask.cluster.registration import ALIVE, Registration, connection_lost
from at_once_dask.driver.backend import Broken, Changed, Delivered, Died, Event, Reclaimed
from at_once_dask.driver.blame import Death
from at_once_dask.driver.packing import PackedJob
from at_once_dask.driver.workers_seen import PATIENCE_SECONDS
from at_once_dask.logs import log_file
from at_once_dask.logs.log_file import RunLog
from at_once_dask.protocol import events, lease
from at_once_dask.protocol.events import (
    LogLines,
    Running,
    WorkerDied,
    WorkerGone,
    WorkerLeft,
    WorkerMet,
)
from at_once_dask.protocol.host_files import HostFiles
from at_once_dask.protocol.progress_file import Progress
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.task import Outcome, Partition, host_of
from at_once_dask.worker import last_stack
from at_once_dask.worker.environment import InterpreterSettings
from at_once_dask.worker.nanny_plugin import RunNannyPlugin
from at_once_dask.worker.plugin import RunPlugin, run_partition

# What batch systems send to all processes of a job; an input that kills its worker so is lost, too.
_TO_GO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GONE_SECONDS = 1.0  # for the scheduler to notice that a worker is gone


class DaskBackend:
    """A Backend; a context manager.

    Parameters
    ----------
    cluster : Cluster
    job : PackedJob
    run_log : RunLog
    labels : (str, str)
        What the tasks of the map pass, and those of the reduction, are called in Dask's dashboard.
    timeout : float or None
        Seconds an input may take.
    interrupts : Interrupts, optional
    note : callable, optional
        Called with what the user should know; by default it is only logged.
    """

    def __init__(
        self,
        cluster: Cluster,
        job: PackedJob,
        run_log: RunLog,
        labels: tuple[str, str],
        timeout: float | None = None,
        interrupts: Interrupts | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._cluster = cluster
        self._client = cluster.client
        self._job = job
        self._run_log = run_log
        self._labels = [f"{label}-{run_log.run}" for label in labels]
        self._interrupts = Interrupts() if interrupts is None else interrupts
        plugin = RunNannyPlugin(run_log.run, timeout)
        self._registration = Registration(cluster, plugin, self._interrupts, note or run_log.warn)
        self._files = HostFiles(cluster.scratch, run_log.run, run_log.warn)
        self._since = time.time()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._questions = _Questions(self._client, self._events)
        self._futures: dict[str, Future[Outcome | None]] = {}
        self._sent = 0
        self._undo = contextlib.ExitStack()
        self._demand = None if cluster.own else Demand(self._client, self._labels[0])

    def __enter__(self) -> DaskBackend:
        # Inputs of 10 MB and more are no mistake here: there is no other way for them to go.
        quiet = dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})
        self._undo.enter_context(quiet)
        try:
            with self._interrupts.at_once():
                self._introduce()
        except BaseException:  # a Ctrl-C too: the workers must not keep half of it
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._undo.close()
        self._files.close()
        if self._client.status != "running":
            dask_internals.unsubscribe(self._client, self._topic)
            return
        for future in list(self._futures.values()):  # outcomes may still arrive
            future.release()
        self._futures.clear()
        if self._demand is not None:
            self._demand.end()
        self._remove_what_is_left()
        self._registration.end()
        # Last: until they have forgotten the run, workers may send lines for the log.
        dask_internals.unsubscribe(self._client, self._topic)

    def _remove_what_is_left(self) -> None:
        """Remove the files of workers that are gone; the others and nannies do so themselves."""
        for worker in self._registration.known.keys() - self._registration.there.keys():
            folder = self.progress_folder(worker)
            if folder is not None:
                folder.clear()

    def _introduce(self) -> None:
        """Bring the run to the workers and their nannies, and listen to what they report."""
        self._client.subscribe_topic(self._topic, self._receive)
        self._files.open()
        environment = self._cluster.environment()
        plugin = RunPlugin(
            self._run_log.run,
            self._files.job([self._job.pickled, *self._job.buffers]),
            self._run_log,
            environment,
            None if environment is None else InterpreterSettings.of_this_process(),
            self._files.values,
        )
        self._registration.introduce(plugin, self._files)

    @property
    def _topic(self) -> str:
        return events.topic(self._run_log.run)

    @property
    def _loop(self) -> IOLoop:
        loop = self._client.loop
        assert loop is not None  # the client runs
        return loop

    @property
    def sees_progress(self) -> bool:
        return self._cluster.own

    def workers(self) -> dict[str, Worker]:
        return self._registration.workers(is_at_work=self._sent > 0)

    def send(self, worker: str, partition: Partition) -> None:
        if self._client.status not in ALIVE:
            raise connection_lost()
        self._sent += 1
        future = self._client.submit(
            run_partition,
            self._files.inputs(partition),
            key=(self._labels[partition.reducing], self._sent),
            workers=[worker],
            allow_other_workers=False,
            pure=False,
        )
        self._futures[partition.id] = future
        self._loop.add_callback(self._fetch, partition.id, worker, future)

    async def _fetch(self, id: str, worker: str, future: Future[Outcome | None]) -> None:
        """Bring an outcome here as soon as it is there: a later death cannot take it along."""
        try:
            await dask_internals.ended(future)
            outcome = self._left(id, worker) or await self._client.gather(future)
            event: Event = Delivered(id, outcome)
        except BaseException as error:
            event = Broken(id, error, here=self._client.status == "connecting")
            if self._client.status not in ALIVE:
                event = Broken(id, connection_lost())
        self._futures.pop(id, None)
        self._files.landed(id)
        self._events.put(event)

    def _left(self, id: str, worker: str) -> Outcome | None:
        """The outcome that the worker has left in a file, on the own cluster."""
        folder = self.progress_folder(worker) if self.sees_progress else None
        content = None if folder is None else folder.fetch(id)
        return None if content is None else pickle.loads(content)

    def reclaim(self, worker: str, wanted: list[tuple[str, int]], stopping: bool) -> None:
        folder = self.progress_folder(worker) if self.sees_progress else None
        if folder is not None:
            limits = {id: folder.take_back(id, start) for id, start in wanted}
            self._events.put(Reclaimed(valfilter(lambda limit: limit is not None, limits)))
        else:
            self._loop.add_callback(self._questions.ask, worker, wanted, stopping)

    def unstarted(self, worker: str, id: str) -> int | None:
        folder = self.progress_folder(worker)
        return None if folder is None else folder.unstarted(id)

    def take_back(self, worker: str, id: str, start: int) -> int | None:
        folder = self.progress_folder(worker)
        return None if folder is None else folder.take_back(id, start, share=0.5)

    def _receive(self, event: tuple[float, dict[str, Any]]) -> None:
        match events.read(event[1]):
            case LogLines(lines):
                log_file.append_line(self._run_log.path, lines)
            case WorkerDied() as death:
                self._loop.add_callback(partial(self._died, death))
            case WorkerLeft() as left:
                self._events.put(Died(_departure(left)))
            case WorkerMet() as met:
                self._registration.met(met)
                self._events.put(Changed())
            case WorkerGone(worker, directory):
                self._events.put(Died(self.unreported_death(worker, directory)))
            case Running() as running:
                self._events.put(running)

    async def _died(self, seen: WorkerDied) -> None:
        """Put together what is known of a death."""
        memory = None
        with contextlib.suppress(Exception):  # the news must arrive, whatever else fails
            memory = await self._memory_of(seen)
            # The scheduler keeps what it passes on: files of thousands of deaths, with values.
            await self._client.run_on_scheduler(dask_internals.forget_events, self._topic)
        self._events.put(Died(_reported(seen, memory, self._cluster.own)))

    async def _memory_of(self, seen: WorkerDied) -> int | None:
        """How much it held, when its nanny ended it for that."""
        if -seen.exit not in (signal.SIGTERM, signal.SIGKILL):
            return None
        found = await self._client.get_events(MEMORY_TOPIC)
        new = [e["rss"] for at, e in found if e["worker"] == seen.worker and at > self._since]
        return new[-1] if new else None

    def unreported_death(self, worker: str, directory: str) -> Death:
        known = self._registration.known.get(worker)
        had_nanny = known is not None and known.nanny is not None
        return _unreported(worker, directory, self.progress_folder(worker), had_nanny)

    def progress_folder(self, worker: str) -> ProgressFolder | None:
        known = self._registration.known.get(worker)
        if known is None:
            return None
        folder = ProgressFolder(known.scratch, self._run_log.run, worker)
        return folder if folder.is_open() else None

    def keep_values(self) -> str | None:
        return self._files.keep_values()

    @property
    def patience(self) -> float:
        return PATIENCE_SECONDS if self._cluster.own else math.inf

    @property
    def is_connected(self) -> bool:
        return self._client.status == "running"

    def want(self, seconds: float | None) -> None:
        if self._demand is not None and self.is_connected:
            self._demand.show(seconds, len(self._registration.there))

    def drop(self, id: str, worker: str) -> None:
        future = self._futures.pop(id, None)
        self._files.landed(id)
        if future is not None:
            future.release()
        folder = self.progress_folder(worker)
        if folder is not None:
            folder.forget((id,))

    def next(self, timeout: float) -> Event | None:
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def end(self, workers: set[str]) -> None:
        if not workers or self._client.status != "running":
            return
        ended = self._cluster.end_workers(workers)
        self._registration.occupied |= workers - ended
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            self._client.sync(self._registration.left, ended, callback_timeout=GONE_SECONDS)


class _Questions:
    """Asks workers of a borrowed cluster to give back; their answers become events."""

    def __init__(self, client: Client, events: queue.SimpleQueue[Event]) -> None:
        self._client = client
        self._events = events
        self._open: dict[str, bool] = {}  # by worker; whether all is asked for, come what may

    async def ask(self, worker: str, wanted: list[tuple[str, int]], stopping: bool) -> None:
        """Ask, unless an answer to as much is still on its way."""
        is_open = worker in self._open and (self._open[worker] or not stopping)
        if is_open or self._client.status != "running":
            return
        self._open[worker] = stopping
        try:
            answers: dict[str, Any] = await self._client.run(
                lease.take_back, wanted, stopping, workers=[worker], on_error="ignore"
            )
        except OSError:  # the worker or the scheduler is gone
            return
        finally:
            self._open.pop(worker, None)
        for limits in answers.values():
            self._events.put(Reclaimed(limits))


def _reported(seen: WorkerDied, memory: int | None, own: bool) -> Death:
    """A death as its nanny tells it; `memory`: what it held, when it was ended for that."""
    progress = None if seen.progress is None else _read(seen.progress)
    overdue = None if seen.overdue is None else (seen.overdue[0], seen.overdue[1])
    told_to_go = memory is None and overdue is None and -seen.exit in _TO_GO
    return Death(
        worker=seen.worker,
        at=seen.at,
        epoch=seen.epoch,
        exit=seen.exit,
        progress=progress,
        overdue=overdue,
        timeout=seen.timeout,
        memory=memory,
        stack=_stack_of(seen, progress or {}),
        last_words=seen.last_words,
        departed=told_to_go and not own,
        beside=seen.beside,
        host=seen.host,
    )


def _unreported(
    worker: str, directory: str, folder: ProgressFolder | None, had_nanny: bool
) -> Death:
    """A death that nobody tells: a nanny would have, so that is gone, too, with its machine."""
    now = time.monotonic()
    return Death(
        worker,
        at=now,
        epoch=time.time() - now,
        progress=None if folder is None else _read(folder.contents()),
        stack=last_stack.read("" if folder is None else folder.read_stack(), None, None),
        directory=directory,
        departed=had_nanny,
        beside=0 if folder is None else folder.beside(),
        host=host_of(worker),
    )


def _stack_of(seen: WorkerDied, progress: dict[str, Progress]) -> last_stack.Stack:
    """Where it was; whatever is written there, it keeps no death from the driver."""
    blamed = None if seen.overdue is None else progress.get(seen.overdue[0])
    with contextlib.suppress(Exception):
        thread = None if blamed is None else blamed.thread
        return last_stack.read(seen.stack, seen.exit, thread)
    return last_stack.NOWHERE


def _departure(left: WorkerLeft) -> Death:
    return Death(
        left.worker,
        at=left.at,
        epoch=left.epoch,
        exit=0,
        progress=_read(left.progress),
        directory=left.directory,
        departed=True,
    )


def _read(contents: dict[str, bytes]) -> dict[str, Progress]:
    """The progress of partitions that had started."""
    found: dict[str, Progress] = valfilter(bool, valmap(Progress.read, contents))
    return found
