"""The partitions in flight: who holds what, who has room, and what is asked back."""

from __future__ import annotations

import contextlib
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter, itemgetter

from at_once_dask.driver.backend import Backend
from at_once_dask.driver.inputs import Chunk
from at_once_dask.protocol.task import host_of

DEPTH = 2  # partitions in flight for each worker thread
MANY = 16  # workers: so many need a while to start together
START_SECONDS = 0.5  # for them to start, before each gets a second partition
RECLAIM_SECONDS = 0.05  # a partition out for longer may be asked back
ASK_SECONDS = 1.0  # between two questions to a worker, where they are messages
HELD_UP_SECONDS = 2.0  # a partition out for longer that has not started waits for somebody else's


@dataclass(slots=True, eq=False)
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
    answered: bool = False
    lost: float | None = None

    @property
    def rest(self) -> Chunk:
        """The part that was not taken back."""
        return self.chunk.part(self.chunk.start, self.limit)


class Rooms:
    """How many partitions more each worker may get; who may get the most is found at once.

    Parameters
    ----------
    room : mapping of str to int
        By worker.
    """

    def __init__(self, room: Mapping[str, int]) -> None:
        self._room = dict(room)
        self._with: defaultdict[int, dict[str, None]] = defaultdict(dict)  # ordered sets
        for worker, places in room.items():
            self._with[places][worker] = None

    def fill(self, worker: str, places: int) -> None:
        """So many places of `worker` are taken; nothing happens where it may get nothing."""
        if worker in self._room:
            del self._with[self._room[worker]][worker]
            self._room[worker] -= places
            self._with[self._room[worker]][worker] = None

    def most(self, may: Callable[[str], bool]) -> str | None:
        """The worker with the most places of those that `may` get something, if any has one."""
        for places in sorted(self._with, reverse=True):
            if places > 0:
                for worker in self._with[places]:
                    if may(worker):
                        return worker
        return None


class Flights:
    """All partitions in flight.

    What is asked for each partition that is sent costs no more where there are more workers.

    Parameters
    ----------
    backend : Backend
    clock : callable
        Seconds.

    Attributes
    ----------
    held : mapping of str to InFlight
        By partition id.
    delivered : dict of str to list of str
        The partitions of each worker that have come back, and whose files it may remove.
    slots : int
        How many partitions may be in flight.
    n_inputs : int
        How many inputs are in flight.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._clock = clock
        self._sent = 0
        self._since = clock()
        self._looked = float("-inf")
        self._asked: dict[str, float] = {}  # when, by worker
        self._waited: Counter[str] = Counter()  # how often it was asked for what only waits there
        self._threads: Mapping[str, int] = {}
        self._rooms = Rooms({})
        self._of: defaultdict[str, dict[str, InFlight]] = defaultdict(dict)  # by worker
        self.slots = 0
        self.n_inputs = 0
        self.held: dict[str, InFlight] = {}
        self.delivered: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, prefix: str, chunk: Chunk, worker: str, directory: str) -> InFlight:
        """`chunk` goes to `worker` now."""
        id = f"{prefix}{self._sent}"
        self._sent += 1
        flight = InFlight(id, chunk, worker, directory, self._clock(), chunk.stop)
        self.held[id] = self._of[worker][id] = flight
        self.n_inputs += len(chunk)
        self._rooms.fill(worker, self._places(flight))
        return flight

    def remove(self, id: str) -> None:
        """It is in flight no more."""
        flight = self.held.pop(id)
        self.n_inputs -= flight.limit - flight.chunk.start
        del self._of[flight.worker][id]
        if not self._of[flight.worker]:
            del self._of[flight.worker]
        self._rooms.fill(flight.worker, -self._places(flight))

    @contextlib.contextmanager
    def landing(self, id: str) -> Iterator[InFlight]:
        """It is in flight until it is recorded, and then no more, whatever happens."""
        try:
            yield self.held[id]
        finally:
            self.remove(id)

    def drop(self, flight: InFlight) -> None:
        """It never comes back."""
        self.remove(flight.id)
        self._backend.drop(flight.id, flight.worker)

    def keep(self, wanted: Callable[[InFlight], bool]) -> None:
        """Forget all others."""
        for id in [id for id, flight in self.held.items() if not wanted(flight)]:
            self.remove(id)

    def of(self, worker: str) -> list[InFlight]:
        """The partitions that `worker` holds."""
        return list(self._of[worker].values()) if worker in self._of else []

    def first_of(self, worker: str) -> set[str]:
        """The ones it was sent first, as many as it works on at once: it does so in that order."""
        n = self._threads.get(worker, 1)
        return {flight.id for flight in sorted(self.of(worker), key=attrgetter("sent"))[:n]}

    def workers(self) -> set[str]:
        """The workers that hold something."""
        return set(self._of)

    @property
    def n_idle(self) -> int:
        """How many workers have nothing to do."""
        return len(self._threads) - len(self._of)

    def all_start(self) -> bool:
        """Whether many workers have their first partition only now: the second ones can wait."""
        if self.n_idle > 0 or len(self._threads) < MANY:
            return False
        return self._clock() - self._since < START_SECONDS

    def take_workers(self, threads: Mapping[str, int]) -> None:
        """These workers may get something, and have so many threads."""
        self._threads = dict(threads)
        self.slots = DEPTH * sum(threads.values())
        self._rooms = Rooms({worker: DEPTH * n for worker, n in threads.items()})
        for flight in self.held.values():
            self._rooms.fill(flight.worker, self._places(flight))

    def least_busy(self, reserved: str | None) -> str | None:
        """The worker with the most room, if any but the `reserved` one has room."""
        return self._rooms.most(lambda worker: worker != reserved)

    def least_busy_elsewhere(self, reserved: str | None, host: str) -> str | None:
        """The same, on another host than this, if one is given; any where there is no other."""
        others = {worker for worker in self._threads if host_of(worker) != host} if host else ()
        if not others:
            return self.least_busy(reserved)
        return self._rooms.most(lambda worker: worker in others and worker != reserved)

    def room_for_again(self) -> tuple[str | None, str | None]:
        """A worker for what runs a second time; without one, who is to be kept free for it."""
        held = {worker: len(self._of.get(worker, ())) for worker in self._threads}
        free = [w for w in self._threads if held[w] < (1 if self._is_shared(w) else DEPTH)]
        if free:
            return min(free, key=held.__getitem__), None
        shared = list(filter(self._is_shared, self._threads))
        return None, min(shared, key=held.__getitem__, default=None)

    def _places(self, flight: InFlight) -> int:
        """How many it takes: one that runs a second time has its process for itself."""
        threads = self._threads.get(flight.worker, 1)
        return DEPTH * threads if flight.chunk.again and self._is_shared(flight.worker) else 1

    def _is_shared(self, worker: str) -> bool:
        """Whether nobody could tell which of two partitions ended it."""
        return self._threads.get(worker, 1) > 1 or not self._backend.sees_progress

    def take_delivered(self, worker: str) -> tuple[str, ...]:
        return tuple(self.delivered.pop(worker, ()))

    def take_back(self, limits: Mapping[str, int]) -> Iterator[Chunk]:
        """The chunks that workers have given back: of each partition all from its new limit on."""
        for id, limit in limits.items():
            flight = self.held.get(id)
            if flight is None:
                continue
            flight.answered = True
            if limit < flight.limit:
                yield flight.chunk.part(limit, flight.limit)
                self.n_inputs -= flight.limit - limit
                flight.limit = limit

    def take_back_for_idle(self) -> Iterator[Chunk]:
        """Take back what others have not started; or ask for it, where it cannot be seen."""
        if self._backend.sees_progress:
            yield from self._take_halves(self.n_idle)
            return
        for worker in self.workers():
            self.ask_back(worker)

    def _take_halves(self, n: int) -> Iterator[Chunk]:
        """Half of what `n` partitions have not started, of those that have the most."""
        now = self._clock()
        if now - self._looked < RECLAIM_SECONDS:
            return
        self._looked = now
        unstarted = [found for worker in self._of for found in self._unstarted(worker, now)]
        for _, flight in heapq.nlargest(n, unstarted, key=itemgetter(0)):
            limit = self._backend.take_back(flight.worker, flight.id, flight.chunk.start)
            if limit is not None:
                yield from self.take_back({flight.id: limit})

    def _unstarted(self, worker: str, now: float) -> Iterator[tuple[int, InFlight]]:
        """Its partitions of which something has not started, and is not just about to; how much."""
        held = [(self._backend.unstarted(worker, f.id), f) for f in self.of(worker)]
        is_busy = any(n is not None for n, _ in held)
        for n, flight in held:
            n = len(flight.rest) if n is None and is_busy else n
            if n and now - flight.sent >= RECLAIM_SECONDS:
                yield n, flight

    def ask_back(self, worker: str, stopping: bool = False) -> None:
        """Ask `worker` for what it has not started of what is out for long, or of all."""
        now = self._clock()
        if not stopping and now - self._asked.get(worker, -math.inf) < ASK_SECONDS:
            return
        out = {f: now - f.sent for f in self.of(worker) if stopping or not f.answered}
        # Doubled each time: what only takes long to get there must not be taken back for ever.
        patience = HELD_UP_SECONDS * 2 ** self._waited[worker]
        wanted = [
            f for f, seconds in out.items() if stopping or _may_be_given(f, seconds, patience)
        ]
        if wanted:
            self._asked[worker] = now
            waits = not stopping and all(out[flight] >= patience for flight in wanted)
            self._waited[worker] += waits
            questions = [(flight.id, flight.chunk.start) for flight in wanted]
            self._backend.reclaim(worker, questions, stopping or waits)

    def drop_empty(self) -> None:
        """Forget what was taken back whole, when nothing else is out.

        It waits behind the task of somebody else; until then it keeps that worker from more. On the
        own cluster there is nothing of the kind, and a mark in a file keeps it from starting.
        """
        flights = list(self.held.values())
        if not self._backend.sees_progress and all(f.limit == f.chunk.start for f in flights):
            for flight in flights:
                self.drop(flight)


def _may_be_given(flight: InFlight, seconds: float, patience: float) -> bool:
    """Whether it is of any use to ask for what is left of it: one input alone has started."""
    return seconds >= (RECLAIM_SECONDS if len(flight.rest) > 1 else patience)
