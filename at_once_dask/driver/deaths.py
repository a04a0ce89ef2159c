"""When workers are gone: which partitions will not come back, and what becomes of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from toolz import keyfilter

from at_once_dask.driver.backend import Backend
from at_once_dask.driver.blame import Case, Death, settle
from at_once_dask.driver.flights import Flights, InFlight
from at_once_dask.driver.hosts import Hosts
from at_once_dask.driver.inputs import Inputs, Retries
from at_once_dask.driver.sinks import Collector
from at_once_dask.driver.stop_rule import StopRule
from at_once_dask.driver.workers_seen import NEWS_SECONDS, WorkersSeen


@dataclass
class Departures:
    """How many workers were told to go, or lost with their machine; what it cost in inputs."""

    workers: int = 0
    inputs: int = 0


@dataclass
class Deaths:
    """Settles what dead workers held; never gives up a worker that lives.

    Attributes
    ----------
    reducing, valued : bool
        As of a Pass.
    backend, flights, workers, inputs, retries, collector, stop_rule, hosts
        The parts of the loop.
    clock : callable
        Seconds.
    departures : Departures
    is_careful : bool
        Whether values are to be delivered one by one: the combiner ends workers.
    """

    reducing: bool
    valued: bool
    backend: Backend
    flights: Flights
    workers: WorkersSeen
    inputs: Inputs
    retries: Retries
    collector: Collector
    stop_rule: StopRule
    hosts: Hosts
    clock: Callable[[], float]
    departures: Departures = field(default_factory=Departures)
    is_careful: bool = False

    def look_for(self, flight: InFlight) -> None:
        """See whether this partition may still come; never give up a worker that lives."""
        worker = flight.worker
        if self.workers.lives(worker, flight.directory):
            if worker in self.workers.paused and flight.limit == flight.chunk.start:
                self.flights.drop(flight)
            elif flight.lost is not None and self.workers.alive[worker].ready:
                if self.clock() - flight.lost > NEWS_SECONDS:
                    self._lose(flight)
        elif self.workers.is_dead(worker):  # it left no trace of this one: that never started
            self._settle(flight, Death(worker, progress={}))
        elif self.workers.is_lost(worker, flight.directory):
            self.take(self.backend.unreported_death(worker, flight.directory))

    def _lose(self, flight: InFlight) -> None:
        """Its worker lives, and has lost what it had done: no input is to blame for that."""
        self._settle(flight, Death(flight.worker, departed=True))

    def take(self, death: Death) -> None:
        """A worker died, or went: settle what it held."""
        held, first = self.flights.of(death.worker), self.flights.first_of(death.worker)
        if death.directory:  # another process may have come to its address
            held = [flight for flight in held if flight.directory == death.directory]
        self.departures.workers += death.departed and not self.workers.is_dead(death.worker)
        self.workers.died(death.worker, death.directory)
        self.flights.take_workers(self.workers.threads)
        self.flights.delivered.pop(death.worker, None)
        if death.progress is not None:  # others are of one that was here before, at its address
            ids = {flight.id for flight in held}
            death = replace(death, progress=keyfilter(ids.__contains__, death.progress))
        self.is_careful = self.is_careful or death.combining()
        if held and not death.departed:
            self.stop_rule.died(death)
        for flight in held:
            if death.directory or death.progress is None or flight.id in death.progress:
                self._settle(flight, death, flight.id in first)

    def _settle(self, flight: InFlight, death: Death, started: bool = True) -> None:
        with self.flights.landing(flight.id):
            self.backend.drop(flight.id, flight.worker)
            chunk = flight.rest
            case = Case(
                flight.id,
                chunk,
                self.reducing,
                self.valued,
                self.retries.lost,
                started,
            )
            settled = settle(case, death)
            for start, outcome in settled.outcomes:
                self.hosts.take(outcome)
                self.collector.recover(chunk.part(start, outcome.stop), outcome)
            for part in settled.chunks:
                self.inputs.give_back(part)
            if death.departed:
                self.departures.inputs += settled.repeated
