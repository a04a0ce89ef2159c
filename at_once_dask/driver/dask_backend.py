"""The hands of the window: where partitions are sent, and where what happens to them comes back.

``Crew`` is the door between the window's loop and a cluster. Tests, and whatever needs no cluster,
put an ``InlineCrew`` in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import dask
from distributed import Future
from tornado.ioloop import IOLoop

from at_once_dask.cluster.connect import MEMORY_TOPIC, Cluster, Worker, listed
from at_once_dask.driver.backend import Broken, Delivered, Died, Event, Failing, Reclaimed, Running
from at_once_dask.driver.blame import Death
from at_once_dask.driver.interrupts import Interrupts
from at_once_dask.errors import AtOnceError, InputError
from at_once_dask.logs import log_file
from at_once_dask.logs.log_file import Book
from at_once_dask.protocol import events
from at_once_dask.protocol.lease import forget, reclaim_all
from at_once_dask.protocol.progress_file import Trace, Trail
from at_once_dask.protocol.task import Job, Outcome, Partition
from at_once_dask.user_code.main_module import Main
from at_once_dask.worker.environment import Settings
from at_once_dask.worker.last_stack import read as read_stack
from at_once_dask.worker.nanny_plugin import Guard
from at_once_dask.worker.partition_run import work
from at_once_dask.worker.plugin import RunPlugin, run_partition

TIDY_SECONDS = 5.0  # for workers and nannies to forget a run
INTRODUCTIONS = 10  # attempts to bring a run to the workers, while some of them die
MEET_SECONDS = 1.0  # for nannies to take a guard, before the run begins without them
JOB = "job"  # the name of its file
FILED_BYTES = 2**20  # of a pickled job, from which on it crosses as a file
MEET_PAUSE_SECONDS = 0.05  # between two questions to a nanny that is replacing its worker
GONE_SECONDS = 2.0  # for the scheduler to notice that a worker is gone
SILENT_SECONDS = 0.5  # instead of TIDY_SECONDS, where somebody has not answered already


class ClusterCrew:
    """The workers of a Dask cluster, for one run; a context manager.

    Everything that waits for the network does so on the client's event loop, so the window's loop
    in the main thread never hangs on a worker that does not answer. In Dask's own dashboard the
    tasks of the map pass have the first of the `labels`, those of the reduction the second.
    """

    def __init__(
        self,
        cluster: Cluster,
        job: bytes,
        book: Book,
        labels: tuple[str, str],
        timeout: float | None = None,
        interrupts: Interrupts | None = None,
    ) -> None:
        self._cluster = cluster
        self._client = cluster.client
        self._job = job
        self._book = book
        self._labels = [f"{label}-{book.run}" for label in labels]
        self._timeout = timeout
        self._interrupts = Interrupts() if interrupts is None else interrupts
        self._shelves = None  # a folder for values that are too many bytes to cross
        if cluster.scratch is not None:
            self._shelves = os.path.join(cluster.scratch, f"values-{book.run}")
        self._known: dict[str, Worker] = {}  # also those that are gone
        self._there: dict[str, Worker] = {}  # at the last look
        self._begun = time.time()
        # By address, and the directory of the process: what was met stays so for as long as it is.
        self._met: dict[str, str] = {}  # workers that are guarded, or have no nanny
        self._meetings: set[asyncio.Future[None]] = set()
        self._unguarded: AtOnceError | None = None
        self._is_over = False
        self._asked: dict[str, str] = {}  # those whose nannies were asked to guard them
        self._questioned: set[str] = set()  # workers that were asked to give back, and have not yet
        self._occupied: set[str] = set()  # workers that could not be ended when a run stopped
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._futures: dict[str, Future[Outcome]] = {}
        self._sent = 0

    def __enter__(self) -> ClusterCrew:
        try:
            with self._interrupts.at_once():
                self._introduce()
        except BaseException:  # a Ctrl-C too: the workers must not keep half of it
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._shelves is not None:
            shutil.rmtree(self._shelves, ignore_errors=True)
        if self._client.status != "running":
            return
        self._client.cancel(list(self._futures.values()), force=True)
        self._futures.clear()
        self._is_over = True
        patience = SILENT_SECONDS if self._occupied else TIDY_SECONDS
        with contextlib.suppress(OSError):
            self._client.sync(self._meetings_end, patience)  # or a guard came after its end
        with contextlib.suppress(ValueError):  # it came to an end before it began
            self._client.unsubscribe_topic(self._topic)
        self._client._event_handlers.pop(self._topic, None)  # Dask keeps it, and with it the run
        for worker, known in self._known.items():  # guards and living workers do so themselves
            trail = self.trail(worker) if known.nanny is None else None
            if trail is not None:
                trail.clear()
        nannies = sorted({known.nanny for known in self._known.values() if known.nanny})
        with contextlib.suppress(OSError, ValueError, KeyError):
            self._client.sync(
                self._client._run_on_scheduler,
                _forget,
                self._topic,
                nannies,
                callback_timeout=2 * patience,
            )

    def _introduce(self) -> None:
        """Bring the run to the workers and their nannies, and listen to what they tell."""
        self._client.subscribe_topic(self._topic, self._told)
        surroundings = self._cluster.surroundings()
        run = self._book.run
        if self._shelves is not None:
            try:
                os.mkdir(self._shelves, mode=0o700)
            except OSError:  # there is no space, or somebody has tidied up: all values cross
                self._shelves = None
        job = self._in_a_file(self._job)
        settings = None if surroundings is None else Settings.of_this_process()
        self._register(
            RunPlugin(
                run, job, self._book, surroundings, self._timeout, self._shelves, settings=settings
            )
        )
        workers: dict[str, Worker] = {}
        with contextlib.suppress(OSError):  # one that has no time to answer is asked again
            workers = self._cluster.workers()
        self._client.sync(self._meet_all, workers)

    def _in_a_file(self, job: bytes) -> bytes | str:
        """A large job crosses as a file, where all workers see it: messages are a copy each."""
        if self._shelves is None or len(job) < FILED_BYTES:
            return job
        path = os.path.join(self._shelves, JOB)
        try:
            with open(path, "xb") as file:
                file.write(job)
        except OSError:  # there is no space
            return job
        self._job = b""
        return path

    def _register(self, plugin: RunPlugin) -> None:
        for attempt in range(INTRODUCTIONS):
            try:
                self._client.register_plugin(plugin, name=self._topic)
                return
            except ModuleNotFoundError as error:
                raise InputError(
                    f"the workers of this cluster cannot import {error.name}; install it there, for"
                    " at_once_dask itself with pip install at_once_dask, and call run() again"
                ) from error
            except OSError as error:  # a worker died just now; the next one gets it by itself
                if self._client.status != "running":
                    raise _lost() from error
                if attempt == INTRODUCTIONS - 1:
                    raise AtOnceError(
                        f"the run cannot be brought to the workers ({error}); see that they can be"
                        " reached and started, or start the cluster anew, and run the same again"
                    ) from error

    @property
    def _loop(self) -> IOLoop:
        loop = self._client.loop
        assert loop is not None  # the client runs
        return loop

    @property
    def _topic(self) -> str:
        return events.topic(self._book.run)

    def workers(self) -> dict[str, Worker]:
        self._look()
        if self._unguarded is not None:
            raise self._unguarded
        self._known |= self._there
        for address, worker in self._strangers():
            self._asked[address] = worker.directory
            self._loop.add_callback(self._begin_meeting, address, worker)
        return {address: self._as_met(address, w) for address, w in self._there.items()}

    def _look(self) -> None:
        """See who is there; a scheduler that is slow to tell has changed nothing."""
        if self._client.status not in ("running", "connecting"):
            raise _lost()
        try:
            with self._interrupts.at_once():
                self._there = self._cluster.workers()
                if not self._sent:
                    self._cluster.check_starts(self._begun)
        except OSError as error:
            if self._client.status not in ("running", "connecting"):
                raise _lost() from error

    def _strangers(self) -> list[tuple[str, Worker]]:
        """The workers whose nannies were not asked yet."""
        return [
            (address, worker)
            for address, worker in self._there.items()
            if worker.ready and self._asked.get(address) != worker.directory
        ]

    def _as_met(self, address: str, worker: Worker) -> Worker:
        """It takes partitions from when it was met; what still runs there begins nothing new."""
        ready = worker.ready and self._met.get(address) == worker.directory
        return replace(worker, ready=ready, paused=worker.paused or address in self._occupied)

    async def _meet_all(self, workers: dict[str, Worker]) -> None:
        """Those that are slow to answer join later."""
        self._known |= workers
        self._there = workers
        for address, worker in self._strangers():
            self._asked[address] = worker.directory
            self._begin_meeting(address, worker)
        await self._meetings_end(MEET_SECONDS)

    def _begin_meeting(self, address: str, worker: Worker) -> None:
        meeting = asyncio.ensure_future(self._meet(address, worker))
        self._meetings.add(meeting)
        meeting.add_done_callback(self._meetings.discard)

    async def _meetings_end(self, timeout: float) -> None:
        if self._meetings:
            await asyncio.wait(set(self._meetings), timeout=timeout)

    async def _meet(self, address: str, worker: Worker) -> None:
        """Put a guard into its nanny, and wait until that is connected to it.

        One that dies before it is connected is never replaced. Dask's own way of bringing a plugin
        to nannies goes by the workers, and passes by those that are replacing theirs.
        """
        guarded = None if worker.nanny else address
        guard = Guard(self._book.run, self._timeout)
        while guarded != address and self._client.status == "running" and not self._is_over:
            try:
                answers = await self._client.run(
                    _take_guard, guard, self._topic, workers=[address], nanny=True, on_error="raise"
                )
                (guarded,) = answers.values()
            except (OSError, KeyError, ValueError):  # it is gone again
                self._asked.pop(address, None)
                return
            except Exception as error:
                self._unguarded = AtOnceError(
                    f"the nanny of {address} cannot watch it: {type(error).__name__}: {error}; see"
                    " that at_once_dask is installed there (pip install at_once_dask), start the"
                    " cluster anew, and run the same again"
                )
                return
            if guarded != address:
                await asyncio.sleep(MEET_PAUSE_SECONDS)
        self._met[address] = worker.directory

    def send(self, worker: str, partition: Partition) -> None:
        if self._client.status != "running":
            raise _lost()
        self._sent += 1
        # Inputs of 10 MB and more are no mistake here: there is no other way for them to go.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            future = self._client.submit(
                run_partition,
                partition,
                key=(self._labels[partition.reducing], self._sent),
                workers=[worker],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
        self._futures[partition.id] = future
        self._loop.add_callback(self._fetch, partition.id, future)

    async def _fetch(self, id: str, future: Future[Outcome]) -> None:
        """Bring an outcome here as soon as it is there: a later death cannot take it along."""
        try:
            event: Event = Delivered(id, await self._client.gather(future))
        except BaseException as error:
            event = Broken(id, error if self._client.status == "running" else _lost())
        self._futures.pop(id, None)
        self._events.put(event)

    def reclaim(self, worker: str, wanted: list[tuple[str, int]], stopping: bool) -> None:
        if worker not in self._questioned or stopping:
            self._questioned.add(worker)
            self._loop.add_callback(self._ask, worker, wanted, stopping)

    async def _ask(self, worker: str, wanted: list[tuple[str, int]], stopping: bool) -> None:
        if self._client.status != "running":
            return
        try:
            answers: dict[str, Any] = await self._client.run(
                reclaim_all, wanted, stopping, workers=[worker], on_error="ignore"
            )
        except OSError:  # the worker or the scheduler is gone
            return
        finally:
            self._questioned.discard(worker)
        for limits in answers.values():
            self._events.put(Reclaimed(limits))

    def _told(self, event: tuple[float, dict[str, Any]]) -> None:
        _, message = event
        if "log" in message:
            log_file.append_line(self._book.path, message["log"])
        elif "died" in message:
            self._loop.add_callback(partial(self._died, **message["died"]))
        elif "failing" in message:
            self._events.put(Failing(message["failing"]))
        else:
            self._events.put(Running(message["worker"], *message["running"]))

    async def _died(
        self,
        worker: str,
        traces: dict[str, bytes] | None,
        overdue: Any,
        stack: str,
        exit: int,
        **told: Any,
    ) -> None:
        """Put together what is known of a death."""
        memory = None
        with contextlib.suppress(Exception):  # the news must arrive, whatever else fails
            memory = await self._memory_of(worker, exit)
            # The scheduler keeps what it passes on: crumbs of thousands of deaths, with values.
            await self._client.run_on_scheduler(_forget_news, self._topic)
        found = None if traces is None else _read(traces)
        thread = found[overdue[0]].thread if found and overdue and overdue[0] in found else None
        death = Death(
            worker=worker,
            traces=found,
            overdue=tuple(overdue) if overdue else None,
            memory=memory,
            exit=exit,
            stack=read_stack(stack, exit, thread),
            **told,
        )
        self._events.put(Died(death))

    async def _memory_of(self, worker: str, exit: int) -> int | None:
        """What it held, when its nanny ended it for that."""
        if -exit not in (signal.SIGTERM, signal.SIGKILL):
            return None
        events = await self._client.get_events(MEMORY_TOPIC)
        new = [
            event["rss"] for at, event in events if event["worker"] == worker and at > self._begun
        ]
        return new[-1] if new else None

    def inquest(self, worker: str) -> Death:
        trail = self.trail(worker)
        found = None if trail is None else _read(trail.traces())
        overdue = [(id, trace.current) for id, trace in (found or {}).items() if trace.overdue]
        now = time.monotonic()
        return Death(
            worker,
            at=now,
            epoch=time.time() - now,
            traces=found,
            overdue=overdue[0] if overdue else None,
            timeout=self._timeout,
        )

    def trail(self, worker: str) -> Trail | None:
        if worker not in self._known:
            return None
        trail = Trail(self._known[worker].scratch, self._book.run, worker)
        return trail if trail.is_open() else None

    def keep_values(self) -> str | None:
        if self._shelves is None:
            return None
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._shelves, JOB))
        if not os.listdir(self._shelves):
            return None
        kept, self._shelves = self._shelves, None
        return kept

    def awaits_workers(self) -> bool:
        return self._cluster.own or any(known.nanny for known in self._known.values())

    def drop(self, id: str, worker: str) -> None:
        future = self._futures.pop(id, None)
        if future is not None:
            self._client.cancel([future], force=True)
        trail = self.trail(worker)
        if trail is not None:
            trail.forget((id,))

    def next(self, timeout: float) -> Event | None:
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def end(self, workers: set[str]) -> None:
        if not workers or self._client.status != "running":
            return
        ended = self._cluster.end_workers(workers)
        self._occupied |= workers - ended
        with contextlib.suppress(OSError):
            self._client.sync(self._leave, ended, callback_timeout=GONE_SECONDS)

    async def _leave(self, workers: set[str]) -> None:
        """Wait until the scheduler knows that they are gone: it would still speak to them."""
        while workers & (await listed(self._client)).keys():
            await asyncio.sleep(0.02)


class InlineCrew:
    """This process as the only worker: a partition is worked on when its outcome is asked for."""

    def __init__(self, job: bytes, book: Book, threads: int = 1) -> None:
        self._job = Job(*Main().fill(job))
        self._book = book
        self._threads = threads
        self._waiting: deque[Partition] = deque()

    def __enter__(self) -> InlineCrew:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._waiting.clear()
        forget(self._book.run)

    def workers(self) -> dict[str, Worker]:
        return {"inline": Worker(self._threads, paused=False, scratch="", nanny=None)}

    def send(self, worker: str, partition: Partition) -> None:
        self._waiting.append(partition)

    def reclaim(self, worker: str, wanted: list[tuple[str, int]], stopping: bool) -> None:
        """Nothing runs between two calls of `next`, so nothing needs to come back."""

    def next(self, timeout: float) -> Event | None:
        if not self._waiting:
            return None
        partition = self._waiting.popleft()
        return Delivered(partition.id, work(lambda: self._job, self._book, partition, "inline"))

    def awaits_workers(self) -> bool:
        return False

    def drop(self, id: str, worker: str) -> None:
        """Nothing dies here."""

    def end(self, workers: set[str]) -> None:
        self._waiting.clear()

    def trail(self, worker: str) -> Trail | None:
        return None

    def keep_values(self) -> str | None:
        return None

    def inquest(self, worker: str) -> Death:
        return Death(worker)


async def _forget(topic: str, nannies: Iterable[str], dask_scheduler: Any) -> None:
    """Runs in the scheduler, which keeps what was told; the last parameter's name is Dask's.

    A worker that dies now takes its plugin along. A nanny that is just replacing its worker is not
    reached by Dask's own way, which goes by the workers; so each is told by its address.
    """
    dask_scheduler._broker._topics.pop(topic, None)
    told = [dask_scheduler.rpc(nanny).plugin_remove(name=topic) for nanny in nannies]
    if topic in dask_scheduler.worker_plugins:
        told.append(dask_scheduler.unregister_worker_plugin(None, topic))
    await asyncio.wait_for(asyncio.gather(*told, return_exceptions=True), TIDY_SECONDS)


def _forget_news(topic: str, dask_scheduler: Any) -> None:
    if topic in dask_scheduler._broker._topics:
        dask_scheduler._broker._topics[topic].events.clear()


def _read(traces: dict[str, bytes]) -> dict[str, Trace]:
    """The crumbs of partitions that had begun."""
    found = {id: Trace.read(content) for id, content in traces.items()}
    return {id: trace for id, trace in found.items() if trace is not None}


async def _take_guard(guard: Guard, name: str, dask_worker: Any) -> str | None:
    """Runs in a nanny, and gives its worker's address; the last parameter's name is Dask's."""
    if name not in dask_worker.plugins:
        answer = await dask_worker.plugin_add(plugin=guard, name=name)
        if answer["status"] != "OK":
            raise RuntimeError(f"its plugin cannot be set up: {answer.get('text', answer)}")
    address: str | None = dask_worker.worker_address
    return address


def _lost() -> AtOnceError:
    return AtOnceError(
        "the connection to the Dask scheduler is lost; start the cluster again, and run the same"
        " again with a new Client"
    )
