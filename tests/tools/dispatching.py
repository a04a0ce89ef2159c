"""A dispatcher without a run around it: what goes in, what comes out, and a clock moved by hand."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from clock import Clock

from at_once_dask.cluster.own import Worker
from at_once_dask.driver.backend import Backend, Delivered, Event
from at_once_dask.driver.blame import Death
from at_once_dask.driver.dispatcher import Dispatcher, Pass
from at_once_dask.driver.inputs import Inputs
from at_once_dask.driver.sinks import MapSink
from at_once_dask.driver.stop_rule import StopRule
from at_once_dask.driver.workers_seen import BLINK_SECONDS, PATIENCE_SECONDS
from at_once_dask.live.progress_bar import NoProgress
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.status import NAMES, PROCESSED
from at_once_dask.protocol.task import MapOutcome, Outcome, Partition
from at_once_dask.reduction.groups import Groups
from at_once_dask.report.ledger import Ledger
from at_once_dask.user_code import pickling


def worker(threads: int = 1, **known: Any) -> Worker:
    """One without a nanny, in a folder "first"."""
    given: dict[str, Any] = {"paused": False, "scratch": "", "nanny": None, "directory": "first"}
    return Worker(threads, **given | known)


def done(partition: Partition, n: int | None = None, seconds: float = 0.001) -> Outcome:
    """The first `n` inputs of `partition` were processed, or all, so many seconds each."""
    n = partition.n if n is None else n
    return MapOutcome(
        stop=partition.start + n,
        worker="w",
        states=bytearray([PROCESSED] * n),
        marks=array("d", [place * seconds for place in range(n + 1)]),
    )


class ScriptedBackend:
    """Workers that do what a test says.

    Parameters
    ----------
    clock : Clock
        Moved on while an event is waited for.
    workers : str
        The addresses of those there are at first.

    Attributes
    ----------
    living : dict of str to Worker
        Those that each look shows.
    sent : list of (str, Partition)
    events : deque of Event
        What comes next.
    idle : callable
        Called with this when there is no event: the test says what happens then.
    asked : list of (str, list, bool)
        What was asked back: worker, partitions with their first position, whether it stops.
    dropped, ended
        What the dispatcher did with partitions and workers.
    inferred : dict of str to float
        When a death was inferred that nobody had reported, by worker.
    replaces : bool
        Whether somebody starts a worker when there is none.
    awaits : bool
        Whether others start workers, perhaps.
    connected : bool
        Whether something can be sent just now.
    wanted : list of float or None
        The seconds of work that were left, at each look.
    """

    sees_progress = False

    def __init__(self, clock: Clock, *workers: str) -> None:
        self._clock = clock
        self.living = {address: worker() for address in workers or ("w",)}
        self.sent: list[tuple[str, Partition]] = []
        self.events: deque[Event] = deque()
        self.idle: Callable[[ScriptedBackend], None] = lambda this: None
        self.asked: list[tuple[str, list[tuple[str, int]], bool]] = []
        self.dropped: list[str] = []
        self.ended: list[set[str]] = []
        self.inferred: dict[str, float] = {}
        self.replaces = False
        self.awaits = False
        self.connected = True
        self.wanted: list[float | None] = []
        self._delivered: set[str] = set()
        self._calls = 0

    @property
    def partitions(self) -> list[Partition]:
        return [partition for _, partition in self.sent]

    @property
    def inputs(self) -> list[list[Any]]:
        """Those of each partition that was sent."""
        return [self.inputs_of(partition) for partition in self.partitions]

    def deliver(self, *workers: str) -> None:
        """What these workers have, or all, comes back whole, in the order in which it was sent."""
        for address, partition in self.sent:
            if partition.id not in self._delivered and address in (workers or (address,)):
                self._delivered.add(partition.id)
                self.events.append(Delivered(partition.id, done(partition)))

    @staticmethod
    def inputs_of(partition: Partition) -> list[Any]:
        packs = [pickling.loads(pack) for pack in partition.packs]
        return packs if partition.singly else list(packs[0])

    def workers(self) -> dict[str, Worker]:
        return dict(self.living)

    def send(self, worker: str, partition: Partition) -> None:
        self.sent.append((worker, partition))

    def unstarted(self, worker: str, id: str) -> int | None:
        return None

    def take_back(self, worker: str, id: str, start: int) -> int | None:
        return None

    def reclaim(self, worker: str, wanted: list[tuple[str, int]], stopping: bool) -> None:
        self.asked.append((worker, wanted, stopping))

    def next(self, timeout: float) -> Event | None:
        self._calls += 1
        assert self._calls < 10_000, "it goes on without end"
        if not self.events:
            self.idle(self)
        if self.events:
            return self.events.popleft()
        self._clock.move(timeout)
        return None

    @property
    def patience(self) -> float:
        if self.awaits:
            return math.inf
        return PATIENCE_SECONDS if self.replaces else BLINK_SECONDS

    @property
    def is_connected(self) -> bool:
        return self.connected

    def want(self, seconds: float | None) -> None:
        self.wanted.append(seconds)

    def drop(self, id: str, worker: str) -> None:
        self.dropped.append(id)

    def end(self, workers: set[str]) -> None:
        self.ended.append(workers)

    def progress_folder(self, worker: str) -> ProgressFolder | None:
        return None

    def keep_values(self) -> str | None:
        return None

    def unreported_death(self, worker: str, directory: str) -> Death:
        self.inferred[worker] = self._clock()
        return Death(worker, progress={}, directory=directory)


@dataclass
class Dispatched:
    """One pass, and what came of it."""

    ledger: Ledger
    dispatcher: Dispatcher
    logged: list[tuple[Failure, Any]] = field(default_factory=list)

    @property
    def statuses(self) -> list[str]:
        return [NAMES[state] for state in self.ledger.states]

    @property
    def messages(self) -> list[str]:
        """Of what failed."""
        return [failed.failure.message for failed in self.ledger.failed]


def dispatching(
    inputs: Iterable[Any],
    backend: Backend,
    clock: Clock,
    *,
    on_error: str = "return",
    max_failures: float | None = None,
    interrupted: Callable[[], None] = lambda: None,
    **more: Any,
) -> Dispatched:
    """A map pass that has not begun; `more` is for its Pass."""
    ledger = Ledger()
    known = list(inputs)
    logged: list[tuple[Failure, Any]] = []
    notes: list[str] = []
    sink = MapSink(
        ledger, Groups(), lambda failure, inp, index: logged.append((failure, inp)), notes.append
    )
    dispatcher = Dispatcher(
        Pass("run", **more),
        Inputs(known, len(known)),
        backend,
        sink,
        NoProgress(),
        StopRule(ledger, on_error, max_failures),
        interrupted,
        clock=clock,
    )
    return Dispatched(ledger, dispatcher, logged)
