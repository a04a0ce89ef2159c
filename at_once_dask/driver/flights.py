"""The partitions in flight: who holds what, who has room, and what is asked back."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from toolz import countby

from at_once_dask.driver.backend import Backend
from at_once_dask.driver.inputs import Chunk

DEPTH = 2  # partitions in flight for each worker thread
RECLAIM_SECONDS = 0.05  # a partition out for longer may be asked back


@dataclass(slots=True)
class InFlight:
    """A partition in flight.

    Attributes
    ----------
    id : str
    chunk : Chunk
    worker, directory : str
        The address it was sent to, and the directory of the process there: another one may come
        to the same address.
    sent : float
        When.
    limit : int
        Lowered when a part of it was taken back.
    asked : float
        When it was asked back.
    answered : bool
        It has given back what it can.
    lost : float or None
        When Dask said that it will not come back.
    """

    id: str
    chunk: Chunk
    worker: str
    directory: str
    sent: float
    limit: int
    asked: float = 0.0
    answered: bool = False
    lost: float | None = None

    @property
    def rest(self) -> Chunk:
        """The part that was not taken back."""
        return self.chunk.part(self.chunk.start, self.limit)


class Flights:
    """All partitions in flight.

    Parameters
    ----------
    backend : Backend
    clock : callable
        Seconds.

    Attributes
    ----------
    held : dict of str to InFlight
        By partition id.
    delivered : dict of str to list of str
        The partitions of each worker that have come back, and whose files it may remove.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._clock = clock
        self._sent = 0
        self.held: dict[str, InFlight] = {}
        self.delivered: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, prefix: str, chunk: Chunk, worker: str, directory: str) -> InFlight:
        """`chunk` goes to `worker` now."""
        id = f"{prefix}{self._sent}"
        self._sent += 1
        flight = InFlight(id, chunk, worker, directory, self._clock(), chunk.stop)
        self.held[id] = flight
        return flight

    @contextlib.contextmanager
    def landing(self, id: str) -> Iterator[InFlight]:
        """It is in flight until it is recorded, and then no more, whatever happens."""
        try:
            yield self.held[id]
        finally:
            del self.held[id]

    def drop(self, flight: InFlight) -> None:
        """It never comes back."""
        del self.held[flight.id]
        self._backend.drop(flight.id, flight.worker)

    def keep(self, wanted: Callable[[InFlight], bool]) -> None:
        """Forget all others."""
        for id in [id for id, flight in self.held.items() if not wanted(flight)]:
            del self.held[id]

    def take_delivered(self, worker: str) -> tuple[str, ...]:
        return tuple(self.delivered.pop(worker, ()))

    def workers(self) -> set[str]:
        """The workers that hold something."""
        return {flight.worker for flight in self.held.values()}

    def count(self, threads: Mapping[str, int]) -> dict[str, int]:
        """How many partitions each worker holds."""
        held = countby(lambda flight: flight.worker, self.held.values())
        return {worker: held.get(worker, 0) for worker in threads}

    def least_busy(self, threads: Mapping[str, int], reserved: str | None) -> str | None:
        """The worker with the most room, if any has room."""
        room = {worker: DEPTH * n for worker, n in threads.items() if worker != reserved}
        for flight in self.held.values():
            if flight.worker in room:
                alone = flight.chunk.again and threads[flight.worker] > 1
                room[flight.worker] -= DEPTH * threads[flight.worker] if alone else 1
        worker = max(room, key=lambda worker: room[worker], default=None)
        return worker if worker is not None and room[worker] > 0 else None

    def room_for_again(self, threads: Mapping[str, int]) -> tuple[str | None, str | None]:
        """A worker for what runs a second time; without one, who is to be kept free for it."""
        held = self.count(threads)
        free = [w for w, n in threads.items() if held[w] < (DEPTH if n == 1 else 1)]
        if free:
            return min(free, key=held.__getitem__), None
        shared = [worker for worker, n in threads.items() if n > 1]
        return None, min(shared, key=held.__getitem__, default=None)

    def take_back(self, limits: Mapping[str, int]) -> Iterator[Chunk]:
        """The chunks that workers have given back: of each partition all from its new limit on."""
        for id, limit in limits.items():
            flight = self.held.get(id)
            if flight is None:
                continue
            flight.answered = True
            if limit < flight.limit:
                yield flight.chunk.part(limit, flight.limit)
                flight.limit = limit

    def ask_back(self, worker: str, stopping: bool = False) -> None:
        """Ask `worker` for what it has not started of what is out for long, or of all."""
        now = self._clock()
        wanted = []
        for id, flight in self.held.items():
            since = max(flight.sent, flight.asked)
            due = not flight.answered and now - since >= RECLAIM_SECONDS
            if flight.worker == worker and (due or stopping):
                flight.asked = now
                wanted.append((id, flight.chunk.start))
        if wanted:
            self._backend.reclaim(worker, wanted, stopping)
