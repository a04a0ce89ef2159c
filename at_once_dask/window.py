"""The driver's loop: a window of partitions in flight. Cut, lease, collect, give back, stop.

::

    Source ──chunk──> Partition ──lease──> a worker ──Outcome──> Sink
       ^                                      │
       └────── what was not handled ──────────┘

Two partitions a worker thread are in flight, so that no worker waits for the driver. A partition
that takes longer than a slice comes back half done, and the rest is cut anew. When workers have
nothing to do while others sit on what they have not begun, it is asked back.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from at_once_dask.crew import Broken, Crew, Delivered, Event, Reclaimed, Running
from at_once_dask.errors import AtOnceError
from at_once_dask.failure import Failure, safe_repr
from at_once_dask.flow import Outcome, Partition
from at_once_dask.pace import Pace
from at_once_dask.source import PAYLOAD_BYTES, Chunk, Source

DEPTH = 2  # partitions in flight for each worker thread
TICK_SECONDS = 0.25
RECLAIM_SECONDS = 0.2  # a partition out for longer may be asked back
NO_WORKERS = (
    "the cluster has no workers; start some, as with `dask worker ADDRESS`, and wait for them with"
    " client.wait_for_workers(1)"
)
GRACE_SECONDS = 1.0  # what running inputs get to finish when a run stops early


class Sink(Protocol):
    """Where outcomes go."""

    def draw(self, n: int) -> None:
        """`n` inputs are known by now."""

    def record(self, start: int, outcome: Outcome, inputs: list[Any]) -> None:
        """The partition that began at `start` with `inputs` came back."""

    def refuse(self, failure: Failure, inp: Any) -> None:
        """An input could not be sent."""


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
    asked: float = 0.0  # when it was asked back


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
    cautious : bool
        Small partitions, because the run may stop at any failure.
    enough : callable
        Asked after each event; a reason to stop early, or None.
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
        cautious: bool = False,
        enough: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._source = source
        self._crew = crew
        self._sink = sink
        self._watcher = watcher
        self._reducing = reducing
        self._enough = enough
        self._run = run
        self._ids = map(str, itertools.count())
        self._pace = Pace(cautious)
        self._out: dict[str, Out] = {}
        self._threads: dict[str, int] = {}
        self._looked = 0.0

    def run(self) -> str | None:
        """Until the source is empty and all is back; or why it stopped early."""
        try:
            while True:
                reason = self._look_at_workers() or self._enough()
                if reason is not None:
                    self.stop()
                    return reason
                self._fill()
                if not self._out:
                    return self._enough()
                self._wait()
                self._reclaim_when_idle()
        except BaseException:
            self.stop()
            raise

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Nothing new begins; what runs gets `grace` seconds, then its worker is ended."""
        self._out = {id: out for id, out in self._out.items() if out.worker in self._threads}
        try:
            for worker in {out.worker for out in self._out.values()}:
                self._ask_back(worker, stopping=True)
            end = time.monotonic() + grace
            while self._out and (left := end - time.monotonic()) > 0:
                self._handle(self._crew.next(left), stopping=True)
        finally:
            self._crew.end({out.worker for out in self._out.values()})
            self._out.clear()

    def _fill(self) -> None:
        total = sum(self._threads.values())
        while (worker := self._least_busy()) is not None:
            chunk = self._source.take(self._pace.size(self._source.left, total))
            self._sink.draw(self._source.drawn)
            if chunk is None:
                return
            self._send(chunk, worker)

    def _least_busy(self) -> str | None:
        """The worker with the most room, if any has room."""
        room = {worker: DEPTH * threads for worker, threads in self._threads.items()}
        for out in self._out.values():
            if out.worker in room:
                room[out.worker] -= 1
        worker = max(room, key=lambda worker: room[worker], default=None)
        return worker if worker is not None and room[worker] > 0 else None

    def _send(self, chunk: Chunk, worker: str) -> None:
        try:
            packs = chunk.pack()
        except Exception:
            self._sift(chunk)
            return
        size = sum(map(len, packs))
        if size > PAYLOAD_BYTES and len(chunk) > 1:
            first, *others = chunk.split(max(1, len(chunk) * PAYLOAD_BYTES // size))
            for other in others:  # each small enough now: none is pickled whole again and again
                self._source.give_back(other)
            chunk, packs = first, first.pack()
        id = f"{self._run}-{'r' if self._reducing else 'm'}{next(self._ids)}"
        self._out[id] = Out(chunk, worker, time.monotonic(), chunk.stop)
        self._crew.send(
            worker,
            Partition(
                id=id,
                run=self._run,
                start=chunk.start,
                packs=packs,
                indices=self._source.indices(chunk),
                singly=chunk.singly,
                reducing=self._reducing,
            ),
        )

    def _sift(self, chunk: Chunk) -> None:
        chunks, failures = chunk.sift()
        if not failures:  # they pickle alone, and not together: too deep, or too large
            self._source.give_back(Chunk(chunk.start, chunk.inputs, singly=True))
            return
        for good in chunks:
            self._source.give_back(good)
        for failure in failures:
            self._sink.refuse(failure, chunk.inputs[failure.position - chunk.start])

    def _wait(self) -> None:
        self._handle(self._crew.next(TICK_SECONDS))
        self._watcher.tick()

    def _handle(self, event: Event | None, stopping: bool = False) -> None:
        match event:
            case Delivered(id, outcome) if id in self._out:
                self._deliver(self._out.pop(id), outcome)
            case Broken(id, error) if id in self._out:
                del self._out[id]
                if not stopping:
                    raise _broken(error)
            case Reclaimed(limits):
                self._take_back(limits)
            case Running():
                self._watcher.running(event)

    def _deliver(self, out: Out, outcome: Outcome) -> None:
        chunk = out.chunk
        if outcome.unreadable:
            self._source.give_back(
                Chunk(chunk.start, chunk.inputs[: out.limit - chunk.start], True)
            )
            return
        self._sink.record(chunk.start, outcome, chunk.inputs)
        self._source.give_back(chunk.part(outcome.stop, out.limit))
        if outcome.marks:
            self._pace.learn(outcome.stop - chunk.start, outcome.marks[-1] - outcome.marks[0])

    def _take_back(self, limits: dict[str, int]) -> None:
        for id, limit in limits.items():
            out = self._out.get(id)
            if out is not None and limit < out.limit:
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
            due = min(now - out.sent, now - out.asked) >= RECLAIM_SECONDS
            if out.worker == worker and (due or stopping):
                out.asked = now
                wanted.append((id, out.chunk.start))
        if wanted:
            self._crew.reclaim(worker, wanted, stopping)

    def _look_at_workers(self) -> str | None:
        """Every second, and at first: which workers there are; why that is too few, or None."""
        now = time.monotonic()
        if self._threads and now - self._looked < 1:
            return None
        self._looked = now
        self._threads = self._crew.threads()
        for out in self._out.values():
            if out.worker not in self._threads:
                return _lost(out)
        return None if self._threads else NO_WORKERS


def _lost(out: Out) -> str:
    first, last = safe_repr(out.chunk.inputs[0]), safe_repr(out.chunk.inputs[-1])
    return (
        f"the worker {out.worker} died while it held the inputs {first} to {last};"
        " which of them ended it is not known"
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
