"""The driver's loop: cut, lease, collect, settle, stop.

::

    Inputs ──chunk──> Partition ──lease──> a worker ──Outcome──> Sink
       ^                                      │
       └────── what was not handled ──────────┘

Two partitions a worker thread are in flight, so that no worker waits for the driver. A partition
that takes longer than a slice comes back half done, and the rest is cut anew. When workers have
nothing to do while others sit on what they have not started, it is asked back. What a dead worker
held is settled (see ``blame``); what failed and has attempts left comes back after a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from at_once_dask.cluster import dask_internals
from at_once_dask.cluster.own import Worker
from at_once_dask.driver.backend import (
    Backend,
    Broken,
    Changed,
    Delivered,
    Died,
    Event,
    Reclaimed,
)
from at_once_dask.driver.deaths import Deaths
from at_once_dask.driver.flights import Flights, InFlight
from at_once_dask.driver.hosts import Hosts
from at_once_dask.driver.inputs import Chunk, Inputs, Retries
from at_once_dask.driver.packing import Packer
from at_once_dask.driver.partition_size import PartitionSizer
from at_once_dask.driver.sinks import Collector, Sink
from at_once_dask.driver.stop_rule import StopRule
from at_once_dask.driver.workers_seen import WorkersSeen
from at_once_dask.errors import AtOnceError
from at_once_dask.protocol.events import Running
from at_once_dask.protocol.progress_file import StartedBeforeError
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.task import Outcome, Partition

TICK_SECONDS = 0.25
GRACE_SECONDS = 1.0  # what running inputs get to finish when a run stops early

# How Dask says that the worker of a partition is gone.
_OF_DEATH = (*dask_internals.LOST, StartedBeforeError)


class Watcher(Protocol):
    """Who looks on: the progress bar, the page."""

    def begin(self, dispatcher: Dispatcher) -> None:
        """The pass begins; what it has in flight can be asked for."""

    def tick(self) -> None:
        """Something happened, or some time has passed."""

    def running(self, event: Running) -> None:
        """A worker reports what has been running there for long."""


@dataclass(frozen=True)
class Pass:
    """How the inputs are handled.

    Attributes
    ----------
    run : str
        The run's id.
    reducing : bool
        Whether the inputs are Groups of the reduction.
    valued : bool
        Whether inputs give values, which are lost when a worker dies before it delivers them.
    retries : int
        Further attempts for an input that failed.
    comparing : bool
        Whether of one input what `check_inp` says afterwards is compared with what it gave.
    """

    run: str
    reducing: bool = False
    valued: bool = False
    retries: int = 0
    comparing: bool = False

    @property
    def prefix(self) -> str:
        """So the ids of its partitions begin."""
        return f"{self.run}-{'r' if self.reducing else 'm'}"


class Dispatcher:
    """Runs inputs through a backend into a sink.

    Parameters
    ----------
    what : Pass
    inputs, backend, sink, watcher
        What it runs, where, where to, and who looks on.
    stop_rule : StopRule
    interrupted : callable
        Asked after each event; raises what ends the run at once.
    note : callable
        Called with what the user should know.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        what: Pass,
        inputs: Inputs,
        backend: Backend,
        sink: Sink,
        watcher: Watcher,
        stop_rule: StopRule,
        interrupted: Callable[[], None] = lambda: None,
        note: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pass = what
        self._inputs = inputs
        self._backend = backend
        self._sink = sink
        self._watcher = watcher
        self._stop_rule = stop_rule
        self._interrupted = interrupted
        self._clock = clock
        self._sizer = PartitionSizer(stop_rule.is_cautious)
        self._packer = Packer(inputs, self._sizer, sink.refuse)
        self._retries = Retries(what.retries)
        self._collector = Collector(sink, inputs, self._retries, clock, what.comparing)
        self._workers = WorkersSeen(clock, backend.sees_progress)
        self._flights = Flights(backend, clock)
        self.deaths = Deaths(
            what.reducing,
            what.valued,
            backend,
            self._flights,
            self._workers,
            inputs,
            self._retries,
            self._collector,
            stop_rule,
            Hosts(note, clock),
            clock,
        )

    def run(self) -> str | None:
        """Until the inputs end and all is back; or why it stopped early."""
        self._watcher.begin(self)
        try:
            while not self._is_done():
                self._interrupted()
                reason = self._look_at_workers() or self._stop_rule.reason()
                if reason is not None:
                    self.stop()
                    return reason
                for chunk in self._retries.due(self._clock()):
                    self._inputs.give_back(chunk)
                if self._backend.is_connected:
                    self._fill()
                if not self._is_done():
                    self._wait()
        except BaseException:
            self.stop()
            raise
        return None

    def _is_done(self) -> bool:
        """Whether all is handled: then no reason to stop counts any more."""
        return not self._flights.held and not self._retries and self._inputs.is_empty()

    @property
    def waits(self) -> float:
        """For how many seconds nobody has worked, because there is no worker."""
        return self._workers.deserted_seconds

    def workers(self) -> list[str]:
        """Addresses of those that may get something; to be called from any thread."""
        return list(self._workers.threads)

    def in_flight(self) -> list[InFlight]:
        """The partitions that workers hold; to be called from any thread."""
        return list(self._flights.held.values())

    def progress_folder(self, worker: str) -> ProgressFolder | None:
        """Where `worker` leaves its progress files, when that can be seen from here."""
        return self._backend.progress_folder(worker)

    def stop(self) -> None:
        """Nothing new starts; what runs gets some seconds, then its worker is ended."""
        flights = self._flights
        flights.keep(lambda flight: flight.worker in self._workers.alive)
        try:
            for worker in flights.workers():
                flights.ask_back(worker, stopping=True)
            end = self._clock() + GRACE_SECONDS
            while flights.held and (left := end - self._clock()) > 0:
                self._handle(self._backend.next(left), stopping=True)
        finally:
            self._backend.end(flights.workers())
            flights.keep(lambda flight: False)

    def _fill(self) -> None:
        reserved = self._fill_again()
        while self._flights.least_busy(reserved) and not self._flights.all_start():
            chunk = self._inputs.take(self._size)
            self._sink.draw(self._inputs.drawn)
            if chunk is None:
                return
            elsewhere = self._flights.least_busy_elsewhere(reserved, chunk.avoid)
            if elsewhere is None:  # there is another host, but it has no room just now
                self._retries.postpone(chunk, self._clock() + TICK_SECONDS)
            else:
                self._send(chunk, elsewhere)

    @property
    def _size(self) -> int:
        """How many inputs to take next."""
        n_idle = self._flights.n_idle if self._backend.sees_progress else None
        return self._sizer.size(self._inputs.left, self._flights.slots, n_idle)

    def _fill_again(self) -> str | None:
        """Send what runs a second time, alone in its process; who is to be kept free for it."""
        while self._inputs.has_again():
            worker, reserved = self._flights.room_for_again()
            if worker is None:
                return reserved
            chunk = self._inputs.take_again(self._size)
            self._send(chunk, worker)
        return None

    def _send(self, chunk: Chunk, worker: str) -> None:
        packed = self._packer.pack(chunk)
        if packed is None:
            return
        chunk, packs = packed
        there = self._workers.alive[worker].directory
        flight = self._flights.add(self._pass.prefix, chunk, worker, there)
        partition = Partition(
            id=flight.id,
            run=self._pass.run,
            start=chunk.start,
            n=len(chunk),
            packs=packs,
            indices=self._inputs.indices(chunk),
            singly=chunk.singly,
            reducing=self._pass.reducing,
            careful=chunk.again or self.deaths.is_careful,
            attempt=self._retries.attempt(chunk.start),
            attempts=self._retries.attempts,
            allowed=self._allowed(),
            seconds=self._sizer.seconds(self._flights.slots),
            delivered=self._flights.take_delivered(worker),
            compare=self._collector.comparing,
        )
        self._backend.send(worker, partition)

    def _allowed(self) -> int | None:
        """How many failures end a partition."""
        limits = self._stop_rule.allowed(), self.deaths.hosts.allowed()
        return min(filter(None, limits), default=None)

    def _wait(self) -> None:
        """Take what comes next; then idle workers get what others have not started."""
        due = self._retries.seconds(self._clock())
        self._handle(self._backend.next(max(0.0, min(due, TICK_SECONDS, self._workers.pause))))
        self._watcher.tick()
        left, n_out, n_idle = self._inputs.left, self._flights.n_inputs, self._flights.n_idle
        self._backend.want(self._sizer.work(left, n_out, n_idle))
        if n_idle > 0 and self._inputs.is_empty():
            for chunk in self._flights.take_back_for_idle():
                self._inputs.give_back(chunk)
            if self._inputs.is_empty():
                self._flights.drop_empty()

    def _handle(self, event: Event | None, stopping: bool = False) -> None:
        held = self._flights.held
        match event:
            case Delivered(id, outcome) if id in held:
                with self._flights.landing(id) as flight:
                    self._deliver(flight, outcome)
            case Broken(id, error, here) if id in held:
                self._take_broken(held[id], error, here, stopping)
            case Reclaimed(limits):
                for chunk in self._flights.take_back(limits):
                    self._inputs.give_back(chunk)
            case Running():
                self._watcher.running(event)
            case Changed():
                self._workers.look_soon()
            case Died(death) if stopping:
                self._flights.keep(lambda flight: flight.worker != death.worker)
            case Died(death):
                self.deaths.take(death)

    def _take_broken(self, flight: InFlight, error: BaseException, here: bool, stops: bool) -> None:
        """It does not come back as it should; where its worker is gone, there will be news."""
        if here and not stops:
            self._flights.remove(flight.id)
            self._inputs.give_back(flight.rest)
        elif isinstance(error, _OF_DEATH) and not stops:
            flight.lost = self._clock()
        else:
            self._flights.remove(flight.id)
            if not stops:
                raise _broken(error)

    def _deliver(self, flight: InFlight, outcome: Outcome) -> None:
        """A partition came back."""
        self._flights.delivered[flight.worker].append(flight.id)
        if self.deaths.hosts.take(outcome):
            self._take_workers(self._workers.alive)
        self._collector.take(flight, outcome)
        n = outcome.stop - flight.chunk.start
        self._retries.handled(flight.chunk.start, outcome.stop)
        if n:
            self._stop_rule.handled()
        if outcome.marks:
            self._sizer.learn(n, outcome.marks[-1] - outcome.marks[0], outcome.n_bytes)

    def _take_workers(self, workers: dict[str, Worker]) -> None:
        """These live, and get something where their host is not avoided."""
        self.deaths.hosts.see(workers)
        self._workers.look(workers, self.deaths.hosts.avoided)
        self._flights.take_workers(self._workers.threads)

    def _look_at_workers(self) -> str | None:
        """Now and then: which workers there are; why that is too few, or None."""
        if not self._workers.is_due():
            return None
        self._take_workers(self._backend.workers())
        for worker in self._workers.paused:  # what it has not started it may never start
            self._flights.ask_back(worker, stopping=True)
        for flight in self.in_flight():
            if flight.id in self._flights.held:  # else it was settled with another of its worker
                self.deaths.look_for(flight)
        is_held = any(self._workers.lives(f.worker, f.directory) for f in self.in_flight())
        return self._workers.why_nobody_works(is_held, self._backend.patience)


def _broken(error: BaseException) -> AtOnceError:
    if isinstance(error, AtOnceError):
        return error
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    send = f', as with client.upload_file("{missing}.py"),' if missing else ""
    broken = AtOnceError(
        f"a partition failed as a whole: {type(error).__name__}: {error}; see that the functions"
        f" can be imported on the workers{send} and run the same again"
    )
    broken.__cause__ = error
    return broken
