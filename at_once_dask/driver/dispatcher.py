"""The driver's loop: a window of partitions in flight. Cut, lease, collect, settle, stop.

::

    Source ──chunk──> Partition ──lease──> a worker ──Outcome──> Sink
       ^                                      │
       └────── what was not handled ──────────┘

Two partitions a worker thread are in flight, so that no worker waits for the driver. A partition
that takes longer than a slice comes back half done, and the rest is cut anew. When workers have
nothing to do while others sit on what they have not begun, it is asked back. What a dead worker
held is settled (see ``blame``); what failed and has attempts left comes back after a while.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from dask.utils import format_bytes
from distributed import CancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from at_once_dask.cluster.connect import Worker
from at_once_dask.driver.backend import (
    Broken,
    Crew,
    Delivered,
    Died,
    Event,
    Failing,
    Reclaimed,
    Running,
)
from at_once_dask.driver.blame import Death, Settled, exit_name, settle
from at_once_dask.driver.inputs import Chunk, Source
from at_once_dask.driver.partition_size import PAYLOAD_BYTES, Pace
from at_once_dask.errors import AtOnceError
from at_once_dask.live.monitor import Flight
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.progress_file import BegunBeforeError, Trail
from at_once_dask.protocol.status import FAILED, LEFT
from at_once_dask.protocol.task import Outcome, Partition
from at_once_dask.user_code import pickling

WEIGHED = 8  # inputs; the size of larger partitions is looked at before they are pickled
DEPTH = 2  # partitions in flight for each worker thread
TICK_SECONDS = 0.25
RECLAIM_SECONDS = 0.05  # a partition out for longer may be asked back
GRACE_SECONDS = 1.0  # what running inputs get to finish when a run stops early
LOOK_SECONDS = 1.0  # between two looks at which workers there are
LOOK_SOON_SECONDS = 0.05  # the same while one is being replaced
NEWS_SECONDS = 5.0  # for news of a worker that is gone; then it counts as lost without any
BLINK_SECONDS = 2.5  # the same without a nanny, and when none is left: one look may be wrong
PATIENCE_SECONDS = 30.0  # for nannies to start a worker when there is none left
SLOW_SECONDS = 300.0  # for workers that live to answer, when all others are gone
LOSSES = 5  # times that a living worker loses what it had done of an input alone; then it failed
BARREN_DEATHS = 10  # in a row, none of them inside an input: then no worker will ever begin one
BACKOFF_SECONDS = 0.5  # before the second attempt; doubled for each further one
BACKOFF_LIMIT = 60.0
NO_WORKERS = (
    "the cluster has no workers; start some, as with `dask worker ADDRESS`, and wait for them with"
    " client.wait_for_workers(1)"
)

NONE_LEFT = (
    "no worker is left that begins anything, and none could be started; see that the machine has"
    " memory, disk space and processes to spare, or start the workers of the cluster anew"
)

# How Dask tells of a partition whose worker is gone.
_OF_DEATH = (KilledWorker, CancelledError, CommClosedError, BegunBeforeError)


class Sink(Protocol):
    """Where outcomes go."""

    def draw(self, n: int) -> None:
        """`n` inputs are known by now."""

    def record(self, start: int, outcome: Outcome, inputs: list[Any]) -> None:
        """The partition that began at `start` with `inputs` came back."""

    def refuse(self, failure: Failure, inp: Any) -> None:
        """An input could not be sent."""

    def log(self, failure: Failure, inp: Any) -> None:
        """An input failed where nobody was left to log it."""


class Watcher(Protocol):
    """Who looks on: the progress."""

    def tick(self) -> None:
        """Something happened, or some time has passed."""

    def running(self, event: Running) -> None:
        """A worker tells what has been running there for long."""


@dataclass(slots=True)
class Out:
    """A partition in flight; `limit` is lowered when a part of it was taken back."""

    chunk: Chunk
    worker: str
    sent: float
    limit: int
    directory: str  # of the worker's process: another one may come to its address
    asked: float = 0.0  # when it was asked back
    answered: bool = False  # it has given back what it can
    lost: float | None = None  # when Dask told that it will not come back
    failed: int = 0  # inputs so far, for good, as its worker tells


class Window:
    """Runs a source through a crew into a sink.

    Parameters
    ----------
    run : str
        The run's id.
    source, crew, sink, watcher
        What it runs, where, and who is told.
    reducing : bool
        Whether the inputs are Groups of the reduction.
    valued : bool
        Whether inputs give values, which are lost when a worker dies before it delivers them.
    retries : int
        Further attempts for an input that failed.
    cautious : bool
        Small partitions, because the run may stop for failures.
    comparing : bool
        Whether of one input what `check_inp` says afterwards is compared with what it gave.
    allowed : callable
        How many more inputs may fail before it does, the one that stops it included; or None.
    enough : callable
        Asked after each event; a reason to stop early, or None.
    interrupted : callable
        Asked as often; raises what ends the run at once.
    """

    def __init__(
        self,
        run: str,
        source: Source,
        crew: Crew,
        sink: Sink,
        watcher: Watcher,
        *,
        reducing: bool = False,
        valued: bool = False,
        retries: int = 0,
        cautious: bool = False,
        comparing: bool = False,
        allowed: Callable[[], int | None] = lambda: None,
        enough: Callable[[], str | None] = lambda: None,
        interrupted: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._crew = crew
        self._sink = sink
        self._watcher = watcher
        self._reducing = reducing
        self._valued = valued
        self._retries = retries
        self._enough = enough
        self._interrupted = interrupted
        self._run = run
        self._ids = map(str, itertools.count())
        self._pace = Pace(cautious)
        self._allowed = allowed
        self._out: dict[str, Out] = {}
        self._delivered: defaultdict[str, list[str]] = defaultdict(list)  # by worker, not yet told
        self._attempts: dict[int, int] = {}  # failed so far, by position
        self._waiting: list[tuple[float, int, Chunk]] = []  # a heap: due, position, to try again
        self._careful = False  # values are delivered one by one: the combiner ends workers
        self._threads: dict[str, int] = {}
        self._paused: set[str] = set()
        self._alive: dict[str, Worker] = {}
        self._losses: Counter[int] = Counter()  # by position, in workers that live
        self._most_threads = 0
        self._looked = float("-inf")
        self._gone: dict[str, float] = {}  # since when, by worker that holds partitions
        self._buried: dict[str, float] = {}  # when it was told that a worker died
        self._last_death = float("-inf")
        self._deserted = 0.0  # since when there is no worker at all
        self._with_nanny: set[str] = set()  # workers: somebody tells of their death, and replaces
        self._barren = 0
        self._hopeless: str | None = None
        self._comparing = comparing

    def run(self) -> str | None:
        """Until the source is empty and all is back; or why it stopped early."""
        try:
            while not self._is_done():
                self._interrupted()
                reason = self._look_at_workers() or self._hopeless or self._enough()
                if reason is not None:
                    self.stop()
                    return reason
                self._try_again()
                self._fill()
                if not self._is_done():
                    self._wait()
                    self._reclaim_when_idle()
        except BaseException:
            self.stop()
            raise
        return None

    def _is_done(self) -> bool:
        """Whether all is handled: then no reason to stop counts any more."""
        return not self._out and not self._waiting and self._source.is_empty()

    def workers(self) -> list[str]:
        """Addresses of those that may get something; to be called from any thread."""
        return list(self._threads)

    def in_flight(self) -> list[Flight]:
        """What the workers hold; to be called from any thread."""
        return [
            Flight(id, out.worker, out.chunk, self._is_last_attempt(out), out.failed)
            for id, out in list(self._out.items())
        ]

    def trail(self, worker: str) -> Trail | None:
        """Where `worker` leaves its crumbs, when that can be seen from here."""
        return self._crew.trail(worker)

    def _is_last_attempt(self, out: Out) -> bool:
        return self._attempts.get(out.chunk.start, 0) >= self._retries

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Nothing new begins; what runs gets `grace` seconds, then its worker is ended."""
        self._out = {id: out for id, out in self._out.items() if out.worker in self._alive}
        try:
            for worker in {out.worker for out in self._out.values()}:
                self._ask_back(worker, stopping=True)
            end = time.monotonic() + grace
            while self._out and (left := end - time.monotonic()) > 0:
                self._handle(self._crew.next(left), stopping=True)
        finally:
            self._crew.end({out.worker for out in self._out.values()})
            self._out.clear()

    def _try_again(self) -> None:
        """What has waited long enough after a failure goes back to the others."""
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            self._source.give_back(heapq.heappop(self._waiting)[2])

    def _fill(self) -> None:
        reserved = self._fill_again()
        slots = DEPTH * sum(self._threads.values())
        while (worker := self._least_busy(reserved)) is not None:
            chunk = self._source.take(self._pace.size(self._source.left, slots))
            self._sink.draw(self._source.drawn)
            if chunk is None:
                return
            self._send(chunk, worker)

    def _fill_again(self) -> str | None:
        """Send what runs a second time; the worker that is to be kept free for it, if any.

        Such a partition shares its process with no other thread's.
        """
        while self._source.has_again():
            held = self._held()
            free = [w for w, n in self._threads.items() if held[w] < (DEPTH if n == 1 else 1)]
            if not free:
                shared = [w for w, n in self._threads.items() if n > 1]
                return min(shared, key=lambda worker: held[worker], default=None)
            slots = DEPTH * sum(self._threads.values())
            chunk = self._source.take_again(self._pace.size(self._source.left, slots))
            self._send(chunk, min(free, key=lambda worker: held[worker]))
        return None

    def _held(self) -> dict[str, int]:
        """How many partitions each worker holds."""
        held = dict.fromkeys(self._threads, 0)
        for out in self._out.values():
            if out.worker in held:
                held[out.worker] += 1
        return held

    def _least_busy(self, reserved: str | None) -> str | None:
        """The worker with the most room, if any has room."""
        room = {worker: DEPTH * n for worker, n in self._threads.items() if worker != reserved}
        for out in self._out.values():
            if out.worker in room:
                alone = out.chunk.again and self._threads[out.worker] > 1
                room[out.worker] -= DEPTH * self._threads[out.worker] if alone else 1
        worker = max(room, key=lambda worker: room[worker], default=None)
        return worker if worker is not None and room[worker] > 0 else None

    def _weighed(self, chunk: Chunk) -> Chunk:
        """As much of it as three of its inputs tell that fits, before it is pickled whole.

        What all inputs share is pickled once: so it counts what the others add to the first.
        """
        if len(chunk) <= WEIGHED:
            return chunk
        some = [chunk.inputs[place] for place in (0, len(chunk) // 2, -1)]
        with contextlib.suppress(Exception):  # what cannot be pickled is found later
            alone = len(pickling.dumps(some[:1]))
            self._pace.weigh((len(pickling.dumps(some)) - alone) / 2)
        first, *others = chunk.split(self._pace.fits)
        for other in others:
            self._source.give_back(other)
        return first

    def _send(self, chunk: Chunk, worker: str) -> None:
        chunk = self._weighed(chunk)
        try:
            packs = chunk.pack()
        except Exception:
            self._sift(chunk)
            return
        size = sum(map(len, packs))
        self._pace.packed(len(chunk), size)
        if size > PAYLOAD_BYTES and len(chunk) > 1:
            first, *others = chunk.split(max(1, len(chunk) * PAYLOAD_BYTES // size))
            for other in others:  # each small enough now: none is pickled whole again and again
                self._source.give_back(other)
            chunk, packs = first, first.pack()
        id = f"{self._run}-{'r' if self._reducing else 'm'}{next(self._ids)}"
        directory = self._alive[worker].directory
        self._out[id] = Out(chunk, worker, time.monotonic(), chunk.stop, directory)
        self._crew.send(
            worker,
            Partition(
                id=id,
                run=self._run,
                start=chunk.start,
                n=len(chunk),
                packs=packs,
                indices=self._source.indices(chunk),
                singly=chunk.singly,
                reducing=self._reducing,
                careful=chunk.again or self._careful,
                attempt=1 + self._attempts.get(chunk.start, 0),
                attempts=1 + self._retries,
                allowed=self._allowed(),
                seconds=self._pace.seconds,
                delivered=tuple(self._delivered.pop(worker, ())),
                compare=self._comparing,
            ),
        )

    def _sift(self, chunk: Chunk) -> None:
        chunks, failures = chunk.sift()
        if not failures:  # they pickle alone, and not together: too deep, or too large
            self._source.give_back(replace(chunk, singly=True))
            return
        for good in chunks:
            self._source.give_back(good)
        for failure in failures:
            self._sink.refuse(failure, chunk.inputs[failure.position - chunk.start])

    def _wait(self) -> None:
        due = self._waiting[0][0] - time.monotonic() if self._waiting else TICK_SECONDS
        soon = LOOK_SOON_SECONDS if self._is_short_of_workers() else TICK_SECONDS
        self._handle(self._crew.next(max(0.0, min(due, soon))))
        self._watcher.tick()

    def _handle(self, event: Event | None, stopping: bool = False) -> None:
        match event:
            case Delivered(id, outcome) if id in self._out:
                self._deliver(id, self._out[id], outcome)
            case Broken(id, error) if id in self._out:
                if stopping:
                    del self._out[id]
                elif isinstance(error, _OF_DEATH):
                    self._out[id].lost = time.monotonic()
                else:
                    del self._out[id]
                    raise _broken(error)
            case Reclaimed(limits):
                self._take_back(limits)
            case Running():
                self._watcher.running(event)
            case Failing(counts):
                self._count_failing(counts)
            case Died(death):
                if stopping:
                    gone = [id for id, out in self._out.items() if out.worker == death.worker]
                    for id in gone:
                        del self._out[id]
                else:
                    self._bury(death)

    def _count_failing(self, counts: dict[str, int]) -> None:
        for id, n in counts.items():
            out = self._out.get(id)
            if out is not None and self._is_last_attempt(out):
                out.failed = n

    def _deliver(self, id: str, out: Out, outcome: Outcome) -> None:
        """A partition came back: it is in flight until it is recorded, or its failures would be
        nowhere for as long as that takes.
        """
        try:
            self._take_in(id, out, outcome)
        finally:
            del self._out[id]

    def _take_in(self, id: str, out: Out, outcome: Outcome) -> None:
        chunk = out.chunk
        self._delivered[out.worker].append(id)
        if outcome.unreadable:
            self._source.give_back(replace(chunk.part(chunk.start, out.limit), singly=True))
            return
        self._compare(outcome, chunk)
        self._record(chunk.start, outcome, chunk.inputs)
        self._source.give_back(chunk.part(outcome.stop, out.limit))
        if outcome.stop > chunk.start:
            self._barren = 0
        if outcome.marks:
            seconds = outcome.marks[-1] - outcome.marks[0]
            self._pace.learn(outcome.stop - chunk.start, seconds, outcome.n_bytes)

    def _compare(self, outcome: Outcome, chunk: Chunk) -> None:
        """Of those partitions that were in flight together, one difference is enough."""
        difference = outcome.difference
        if difference is not None and self._comparing:
            outcome.states[difference.position - chunk.start] = FAILED
            outcome.failures.append(difference)
            self._sink.log(difference, chunk.inputs[difference.position - chunk.start])
        if outcome.compared:
            self._comparing = False

    def _record(self, start: int, outcome: Outcome, inputs: list[Any]) -> None:
        """Into the sink, but what has attempts left: that waits."""
        final = []
        for failure in outcome.failures:
            position = failure.position
            failure.attempts = self._attempts[position] = self._attempts.get(position, 0) + 1
            if failure.attempts > self._retries or failure.final:
                final.append(failure)
                continue
            outcome.states[position - start] = LEFT
            chunk = Chunk(position, [inputs[position - start]], singly=True)
            heapq.heappush(self._waiting, (_due(failure.attempts), position, chunk))
        outcome.failures = final
        self._sink.record(start, outcome, inputs)

    def _bury(self, death: Death) -> None:
        """A worker died: settle what it held."""
        self._buried[death.worker] = self._last_death = time.monotonic()
        self._gone.pop(death.worker, None)
        self._threads.pop(death.worker, None)
        self._alive.pop(death.worker, None)
        self._delivered.pop(death.worker, None)
        self._looked = float("-inf")
        held = {id: out for id, out in self._out.items() if out.worker == death.worker}
        if death.traces is not None:  # others are of one that was here before, at its address
            traces = {id: trace for id, trace in death.traces.items() if id in held}
            death = replace(death, traces=traces)
        if death.combining():
            self._careful = True
        seen = death.exit is not None and death.traces is not None  # else it may be the machine
        if held and seen and not death.running():
            self._barren += 1
            self._hopeless = _hopeless(death) if self._barren >= BARREN_DEATHS else None
        for id, out in held.items():
            if death.traces is None or id in death.traces:
                self._settle(id, out, death)

    def _settle(self, id: str, out: Out, death: Death) -> None:
        try:
            self._take_apart(id, out, death)
        finally:
            del self._out[id]

    def _take_apart(self, id: str, out: Out, death: Death) -> None:
        self._crew.drop(id, out.worker)
        chunk = out.chunk.part(out.chunk.start, out.limit)
        settled: Settled = settle(id, chunk, death, self._reducing, self._valued)
        for start, outcome in settled.outcomes:
            inputs = chunk.part(start, outcome.stop).inputs
            failures = outcome.failures
            self._record(start, outcome, inputs)
            for failure in failures:
                if failure.kind != "exception":  # those were logged where they happened
                    self._sink.log(failure, inputs[failure.position - start])
        for part in settled.chunks:
            self._source.give_back(part)

    def _take_back(self, limits: dict[str, int]) -> None:
        for id, limit in limits.items():
            out = self._out.get(id)
            if out is None:
                continue
            out.answered = True
            if limit < out.limit:
                self._source.give_back(out.chunk.part(limit, out.limit))
                out.limit = limit

    def _reclaim_when_idle(self) -> None:
        """What busy workers have not begun goes to those that have nothing to do."""
        busy = {out.worker for out in self._out.values()}
        if len(busy) == len(self._threads) or not self._source.is_empty():
            return
        for worker in busy:
            self._ask_back(worker)

    def _ask_back(self, worker: str, stopping: bool = False) -> None:
        """Ask `worker` for what it has not begun of partitions that are out for long, or of all."""
        now = time.monotonic()
        wanted = []
        for id, out in self._out.items():
            due = not out.answered and min(now - out.sent, now - out.asked) >= RECLAIM_SECONDS
            if out.worker == worker and (due or stopping):
                out.asked = now
                wanted.append((id, out.chunk.start))
        if wanted:
            self._crew.reclaim(worker, wanted, stopping)

    def _look_at_workers(self) -> str | None:
        """Now and then: which workers there are; why that is too few, or None."""
        now = time.monotonic()
        pause = LOOK_SOON_SECONDS if self._is_short_of_workers() else LOOK_SECONDS
        if now - self._looked < pause:
            return None
        self._looked = now
        self._take_note(self._crew.workers(), now)
        for worker in self._paused:  # what it has not begun it may never begin
            self._ask_back(worker, stopping=True)
        for id, out in list(self._out.items()):
            if id in self._out:  # else it was settled with another one of its worker
                self._look_for(id, out, now)
        return self._why_nobody_works(now)

    def _take_note(self, workers: dict[str, Worker], now: float) -> None:
        """These workers live."""
        self._alive = workers
        self._paused = {worker for worker, known in workers.items() if known.paused}
        self._threads = {
            worker: known.threads
            for worker, known in workers.items()
            if known.ready and not known.paused
        }
        self._with_nanny |= {worker for worker, known in workers.items() if known.nanny is not None}
        self._most_threads = max(self._most_threads, sum(self._threads.values()))
        for worker in workers:
            if now - self._buried.get(worker, now) > LOOK_SECONDS:  # one at the same address
                del self._buried[worker]

    def _why_nobody_works(self, now: float) -> str | None:
        """Why the run must end when that has been so for too long; None when somebody does."""
        if self._threads or any(map(self._is_held, self._out.values())):
            self._deserted = 0.0
            return None
        self._deserted = self._deserted or now
        patience = PATIENCE_SECONDS if self._crew.awaits_workers() else BLINK_SECONDS
        if self._alive.keys() - self._paused:  # they only have not answered yet
            patience = SLOW_SECONDS
        if now - self._deserted < patience:
            return None
        return NONE_LEFT if self._most_threads or self._alive else NO_WORKERS

    def _is_held(self, out: Out) -> bool:
        """Whether the very process that a partition was sent to lives."""
        known = self._alive.get(out.worker)
        return known is not None and known.directory == out.directory

    def _look_for(self, id: str, out: Out, now: float) -> None:
        """See whether this partition may still come; never give up a worker that lives."""
        worker = out.worker
        if self._is_held(out):
            self._gone.pop(worker, None)
            if worker in self._paused and out.limit == out.chunk.start:
                del self._out[id]
                self._crew.drop(id, out.worker)
            elif out.lost is not None and self._alive[worker].ready:
                if now - out.lost > NEWS_SECONDS:
                    self._lose(id, out)
        elif worker in self._buried:  # it left no trace of this one: that was never begun
            self._settle(id, out, Death(worker, traces={}))
        elif now - self._gone.setdefault(worker, now) > (
            NEWS_SECONDS if worker in self._with_nanny else BLINK_SECONDS
        ):
            self._bury(self._crew.inquest(worker))

    def _lose(self, id: str, out: Out) -> None:
        """Its worker lives, and has lost what it had done: no input is to blame for that."""
        chunk = out.chunk.part(out.chunk.start, out.limit)
        self._losses[chunk.start] += 1
        if chunk.again and len(chunk) == 1 and self._losses[chunk.start] < LOSSES:
            del self._out[id]
            self._crew.drop(id, out.worker)
            self._source.give_back(chunk)
        else:
            self._settle(id, out, Death(out.worker))

    def _is_short_of_workers(self) -> bool:
        """Whether one died a short time ago, and is being replaced."""
        if sum(self._threads.values()) >= self._most_threads:
            return False
        return self._last_death > time.monotonic() - PATIENCE_SECONDS


def _due(failed: int) -> float:
    """When an input that has failed so many times is tried again: exponential, with jitter."""
    backoff = min(BACKOFF_LIMIT, BACKOFF_SECONDS * 2 ** (failed - 1))
    return float(time.monotonic() + backoff * random.uniform(0.5, 1.5))


def _hopeless(death: Death) -> str:
    cause = exit_name(death.exit)
    if death.memory is not None:
        cause = f"the {format_bytes(death.memory)} of memory that it held"
    return (
        f"{BARREN_DEATHS} workers in a row died before they had begun any input, the last one of"
        f" {cause}: what ends them is in the functions themselves, or on the machine; try"
        " process_inp(inp_list[0]) in this process"
    )


def _broken(error: BaseException) -> AtOnceError:
    if isinstance(error, AtOnceError):
        return error
    broken = AtOnceError(
        f"a partition failed as a whole: {type(error).__name__}: {error}; see that the functions"
        " can be imported on the workers, and run the same again"
    )
    broken.__cause__ = error
    return broken
