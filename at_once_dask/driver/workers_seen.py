"""Which workers there are, who is new, who left, who died; and whether anybody works at all."""

from __future__ import annotations

from collections.abc import Callable, Container

from toolz import keyfilter

from at_once_dask.cluster.own import Worker
from at_once_dask.protocol.task import host_of

LOOK_SECONDS = 1.0  # between two looks at which workers there are
LOOK_SOON_SECONDS = 0.05  # the same while one is being replaced
NEWS_SECONDS = 5.0  # for news of a worker that is gone; then it counts as lost without any
BLINK_SECONDS = 2.5  # the same without a nanny; one look may be wrong
PATIENCE_SECONDS = 30.0  # for own workers to be started when there is none left
SLOW_SECONDS = 300.0  # for workers that live to answer, when all others are gone

NONE_LEFT = (
    "no worker is left that starts anything, and none could be started; see that the machine has"
    " memory, disk space and processes to spare, or start the workers of the cluster anew"
)


class WorkersSeen:
    """The workers, by what each look shows; a worker that lives is never given up.

    Parameters
    ----------
    clock : callable
        Seconds.
    are_here : bool
        Whether a look costs no message, so that it may be taken often.

    Attributes
    ----------
    alive : dict of str to Worker
        Those that the latest look showed, by address.
    threads : dict of str to int
        Those that may get something: how many partitions each works on at once.
    paused : set of str
        Those that start nothing.
    """

    def __init__(self, clock: Callable[[], float], are_here: bool = True) -> None:
        self._clock = clock
        self._are_here = are_here
        self._is_soon = False
        self.alive: dict[str, Worker] = {}
        self.threads: dict[str, int] = {}
        self.paused: set[str] = set()
        self._with_nanny: set[str] = set()  # somebody reports their death, and replaces them
        self._most_threads = 0
        self._looked = float("-inf")
        # Since when, by address and directory of processes that hold partitions.
        self._gone: dict[tuple[str, str], float] = {}
        self._dead: dict[str, float] = {}  # when their death was reported
        self._last_death = float("-inf")
        self._deserted: float | None = None  # since when nobody works

    @property
    def n_threads(self) -> int:
        return sum(self.threads.values())

    @property
    def pause(self) -> float:
        """Seconds between two looks."""
        is_soon = self._is_soon or (self._are_here and self.is_short())
        return LOOK_SOON_SECONDS if is_soon else LOOK_SECONDS

    def is_short(self) -> bool:
        """Whether a worker died a short time ago, and is being replaced."""
        recently = self._last_death > self._clock() - PATIENCE_SECONDS
        return recently and self.n_threads < self._most_threads

    def is_due(self) -> bool:
        """Whether it is time for a look."""
        return self._clock() - self._looked >= self.pause

    def look(self, workers: dict[str, Worker], bad_hosts: Container[str] = ()) -> None:
        """These workers live; those on bad hosts start nothing more."""
        now = self._looked = self._clock()
        self._is_soon = False
        self.alive = workers
        self.paused = {
            address
            for address, known in workers.items()
            if known.paused or (bad_hosts and host_of(address) in bad_hosts)
        }
        self.threads = {
            address: known.threads
            for address, known in workers.items()
            if known.ready and address not in self.paused
        }
        self._with_nanny |= {a for a, known in workers.items() if known.nanny is not None}
        self._most_threads = max(self._most_threads, self.n_threads)
        for address in workers:
            if now - self._dead.get(address, now) > LOOK_SECONDS:  # one at the same address
                del self._dead[address]

    def lives(self, worker: str, directory: str) -> bool:
        """Whether the very process lives that has this directory."""
        known = self.alive.get(worker)
        if known is None or known.directory != directory:
            return False
        self._gone.pop((worker, directory), None)
        return True

    def is_dead(self, worker: str) -> bool:
        """Whether its death was reported a short time ago."""
        return worker in self._dead

    def is_lost(self, worker: str, directory: str) -> bool:
        """Whether this process has been gone for so long that nobody will report its death."""
        patience = NEWS_SECONDS if worker in self._with_nanny else BLINK_SECONDS
        now = self._clock()
        return now - self._gone.setdefault((worker, directory), now) > patience

    def died(self, worker: str, directory: str = "") -> None:
        """Its death was reported, or is taken for certain: the next look comes at once.

        `directory`: that of the process, where another one may have come to its address.
        """
        self._looked = float("-inf")
        known = self.alive.get(worker)
        if directory and known is not None and known.directory != directory:
            return
        self._dead[worker] = self._last_death = self._clock()
        self._gone = keyfilter(lambda process: process[0] != worker, self._gone)
        self.threads.pop(worker, None)
        self.alive.pop(worker, None)

    def look_soon(self) -> None:
        """The next look comes sooner."""
        self._is_soon = True

    @property
    def deserted_seconds(self) -> float:
        """For how long nobody has worked."""
        return 0.0 if self._deserted is None else self._clock() - self._deserted

    def why_nobody_works(self, is_held: bool, patience: float) -> str | None:
        """Why the run must end when nobody has worked for too long; None when somebody does.

        `is_held`: whether a worker that lives holds a partition; `patience`: seconds for one to be
        started.
        """
        if self.threads or is_held:
            self._deserted = None
            return None
        now = self._clock()
        if self._deserted is None:
            self._deserted = now
        if self.alive.keys() - self.paused:  # they only have not answered yet
            patience = SLOW_SECONDS
        if now - self._deserted < patience:
            return None
        return NONE_LEFT
