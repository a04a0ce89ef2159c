"""What can be seen of the runs of a cluster, as plain data: for the page, and for its JSON address.

It is put together when somebody looks, on the event loop, from what the run keeps anyhow; a run
that nobody looks at notes how far it is twice a second, and no more. What is read here changes
meanwhile in the run's thread, and no lock is taken: a look shows what was true a moment ago.

One thing is left to the run's thread: the ``repr`` of an input, which may be code of the user's.
That thread calls it anyhow, for the slowest inputs; on the event loop it would hold up the cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PosixPath
from statistics import median
from typing import Any, Protocol

from at_once_dask.crumb import Step, Trail
from at_once_dask.failure import REPR_LIMIT, Failure, cut, safe_repr
from at_once_dask.ledger import Cause, Ledger
from at_once_dask.rates import Eta, Series
from at_once_dask.reduction import Group
from at_once_dask.report import Report
from at_once_dask.source import Chunk, Source
from at_once_dask.states import FAILED, LEFT, PENDING, PROCESSED, SKIPPED, is_final, stage
from at_once_dask.story import BROKEN, INTERRUPTED, STOPPED

switched_on = True  # for a benchmark of what it costs

RUNS = 20  # that are kept
CAUSES = 20  # of a run; those with the most failures
MESSAGE_LIMIT = 300  # characters
RECORD_BYTES = 65_536  # of each partition in flight, for failures that are not delivered yet
NAME_SECONDS = 0.5  # for the run's thread to name the current inputs
NAMES_KEPT = 1_000
LONG_SECONDS = 2.0  # an input that runs for less is not called long, ...
LONG_TIMES = 5  # ... nor one that takes less than so many times the usual
SAMPLE = 1_000  # inputs that tell what is usual

_STATES = {STOPPED: "stopped", INTERRUPTED: "interrupted", BROKEN: "broken"}
_BRIEF = "id", "name", "begun", "state", "phase", "seconds", "inputs", "keys"
_PLAIN = {str, bytes, int, float, bool, type(None), PosixPath}  # their `repr` is none of the user's


@dataclass(frozen=True, slots=True)
class Flight:
    """A partition in flight; `final` when a failure in it has no attempts left."""

    id: str
    worker: str
    chunk: Chunk
    final: bool


class Flights(Protocol):
    """What is in flight; a Window is one."""

    def workers(self) -> list[str]:
        """Addresses of those that may get something."""

    def in_flight(self) -> list[Flight]:
        """What the workers hold."""

    def trail(self, worker: str) -> Trail | None:
        """Where `worker` leaves its crumbs, when that can be seen from here."""


class Sight:
    """The latest runs of one cluster."""

    def __init__(self) -> None:
        self._runs: deque[RunView] = deque(maxlen=RUNS)

    def begin(self, id: str, name: str, ledger: Ledger, source: Source) -> RunView:
        """A run begins; `name` is what people call its function."""
        view = RunView(id, name, ledger, source)
        self._runs.append(view)
        return view

    def run(self, id: str | None = None) -> RunView | None:
        """The run with this id, by default the latest; None where there is none."""
        runs = list(self._runs)
        if id is None:
            return runs[-1] if runs else None
        return next((view for view in runs if view.id == id), None)

    def brief(self) -> list[dict[str, Any]]:
        """A few facts of each run, the latest first."""
        return [view.brief() for view in reversed(list(self._runs))]


class RunView:
    """One run, as it is seen; when it is over, a summary that was made once.

    Parameters
    ----------
    id, name : str
    ledger : Ledger
        What became of its inputs.
    source : Source
        Where they come from.
    """

    def __init__(self, id: str, name: str, ledger: Ledger, source: Source) -> None:
        self.id = id
        self._begun = time.monotonic()
        self._head: dict[str, Any] = {
            "id": id,
            "name": name,
            "begun": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        self._live: _Live | None = _Live(ledger, source)
        self._kept: dict[str, Any] = {}
        self._tracebacks: dict[str, str] = {}

    def begin(self, phase: str, ledger: Ledger, source: Source) -> PassView:
        """A pass begins: ``map``, ``reduce`` or ``check``."""
        assert self._live is not None
        view = PassView(phase, ledger, source, self._live.names)
        self._live.close()
        self._live.passes.append(view)
        return view

    def end(self, report: Report, ended: str, reason: str) -> None:
        """The run is over, in which way and why is told by its story; its ledger is let go."""
        live = self._live
        if live is None:
            return
        live.close()
        is_failed = report.n_failed or report.n_keys_failed
        state = _STATES.get(ended, "failed" if is_failed else "done")
        facts = self._facts(live, []) | {"state": state, "reason": reason or None, "workers": []}
        facts["inputs"] = {
            "total": report.n_inputs,
            "processed": report.n_processed,
            "skipped": report.n_skipped,
            "failed": report.n_failed,
            "pending": live.ledger.counts[PENDING],
            "left": live.ledger.counts[LEFT],
        }
        if facts["keys"] is not None:
            facts["keys"]["failed"] = report.n_keys_failed
        facts |= {"seconds": round(report.seconds, 3), "rate": None, "eta": None}
        groups = live.groups([])[:CAUSES]
        self._tracebacks = {group.id: group.failure.traceback for group in groups}
        self._kept, self._live = facts, None

    def brief(self) -> dict[str, Any]:
        """Its name, how far it is, and how it ended."""
        live = self._live
        facts = self._kept if live is None else self._summary(live)
        return {key: facts[key] for key in _BRIEF}

    async def facts(self) -> dict[str, Any]:
        """All that there is to see; waits a moment for the names of the current inputs."""
        live = self._live
        if live is None:
            return self._kept
        working = live.working()
        end = time.monotonic() + NAME_SECONDS
        while self._live is not None and live.names.lack(working) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return self._kept if self._live is None else self._facts(live, working)

    def rates(self) -> list[dict[str, Any]]:
        """By pass: its phase, and points of seconds since the run began, and inputs a second."""
        live = self._live
        return self._kept["rates"] if live is None else self._rates(live)

    def traceback(self, cause: str) -> str | None:
        """Of the example of a cause; None where there is no such cause."""
        live = self._live
        if live is None:
            return self._tracebacks.get(cause)
        groups = live.groups(live.working())
        return next((g.failure.traceback for g in groups if g.id == cause), None)

    def _summary(self, live: _Live) -> dict[str, Any]:
        now = live.passes[-1] if live.passes else None
        return self._head | {
            "state": "running",
            "phase": "start" if now is None else now.phase,
            "seconds": round(time.monotonic() - self._begun, 3),
            "inputs": live.inputs(),
            "keys": live.keys(),
        }

    def _facts(self, live: _Live, working: list[_Working]) -> dict[str, Any]:
        now = live.passes[-1] if live.passes else None
        groups = live.groups(working)
        usual = None if now is None else _usual(now.ledger)
        return self._summary(live) | {
            "reason": None,
            "rate": None if now is None else _rounded(now.rate()),
            "eta": None if now is None else _rounded(now.eta()),
            "rates": self._rates(live),
            "usual": _rounded(usual),
            "workers": sorted(
                (at.row(live.names, usual) for at in working),
                key=lambda row: -1.0 if row["seconds"] is None else row["seconds"],
                reverse=True,
            ),
            "n_causes": len(groups),
            "causes": [group.row(live.names) for group in groups[:CAUSES]],
            "slowest": [
                {"index": slow.index, "input": slow.inp, "seconds": _rounded(slow.seconds)}
                for slow in live.ledger.slowest()
            ],
        }

    def _rates(self, live: _Live) -> list[dict[str, Any]]:
        return [
            {"phase": view.phase, "points": view.points(view.begun - self._begun)}
            for view in live.passes
        ]


class PassView:
    """One pass of a run: how fast it goes. A Watcher of the run's window.

    Parameters
    ----------
    phase : str
    ledger : Ledger
        What became of its inputs, or keys.
    source : Source
    names : Names
        Of what somebody looks at.
    """

    def __init__(self, phase: str, ledger: Ledger, source: Source, names: Names) -> None:
        self.phase = phase
        self.ledger = ledger
        self.source = source
        self.names = names
        self.flights: Flights | None = None
        self.failing_now = 0
        self.begun = time.monotonic()
        self._eta = Eta(self.begun)
        self._series = Series(self.begun)

    def tick(self) -> None:
        now = time.monotonic()
        handled, worked = self._done()
        self._eta.note(now, handled, worked)
        self._series.note(now, worked)
        self.names.make()

    def running(self, event: object) -> None:
        """The crumbs tell more."""

    def failing(self, n: int) -> None:
        self.failing_now = n

    def close(self) -> None:
        self.flights, self.failing_now = None, 0
        self._series.note(time.monotonic(), self._done()[1], last=True)

    def rate(self) -> float:
        """Inputs a second, those aside that were skipped."""
        return self._series.rate(time.monotonic(), self._done()[1])

    def eta(self) -> float | None:
        """Seconds; None when nobody can know."""
        left = _counts(self.ledger, self.source, self.failing_now)["left"]
        return None if left is None else self._eta.seconds(left, time.monotonic())

    def points(self, offset: float) -> list[list[float]]:
        return [[round(at + offset, 2), round(rate, 2)] for at, rate in self._series.rates()]

    def _done(self) -> tuple[int, int]:
        """How many inputs are handled, and how many of them took work."""
        counts = self.ledger.counts
        worked = counts[PROCESSED] + counts[FAILED] + counts[PENDING]
        return worked + counts[SKIPPED], worked


class Names:
    """Texts for inputs, made in the run's thread; asked for on the event loop."""

    def __init__(self) -> None:
        self._asked: dict[Hashable, Any] = {}
        self._made: dict[Hashable, str] = {}

    def of(self, key: Hashable, inp: Any) -> str | None:
        """The repr of `inp`; None when it is only asked for by this."""
        if type(inp) in _PLAIN:
            return safe_repr(inp)
        made = self._made.get(key)
        if made is None:
            self._asked[key] = inp
        return made

    def lack(self, working: list[_Working]) -> bool:
        """Whether some of these have no name yet; these are asked for."""
        return any(named is None for at in working for named in at.names(self))

    def make(self) -> None:
        while self._asked:
            key, inp = self._asked.popitem()
            if len(self._made) >= NAMES_KEPT:
                self._made = {}
            self._made[key] = safe_repr(inp)


class _Live:
    """What a run has while it goes on."""

    def __init__(self, ledger: Ledger, source: Source) -> None:
        self.ledger = ledger
        self.source = source
        self.passes: list[PassView] = []
        self.names = Names()

    def close(self) -> None:
        """The latest pass is over."""
        if self.passes:
            self.passes[-1].close()

    def inputs(self) -> dict[str, int | None]:
        first = self.passes[0].failing_now if self.passes else 0
        return _counts(self.ledger, self.source, first)

    def keys(self) -> dict[str, int | None] | None:
        """Counts of the reduction; None before there is one."""
        if len(self.passes) < 2:
            return None
        keys = self.passes[1]
        counts = _counts(keys.ledger, keys.source, keys.failing_now)
        return {
            "total": counts["total"],
            "reduced": counts["processed"],
            "failed": counts["failed"],
            "left": counts["left"],
        }

    def groups(self, working: list[_Working]) -> list[_Group]:
        """Causes, also of failures that `working` has not delivered yet; the most frequent first.

        The ledger is read first: a partition that comes back meanwhile does not count twice.
        """
        groups = {cause.example.failure.cause: _Group.of(cause) for cause in self.ledger.causes()}
        flights = self._flights()
        out = set() if flights is None else {flight.id for flight in flights.in_flight()}
        for at in working:
            if at.flight is not None and at.flight.id in out:
                for failure in at.failures():
                    new = _Group(failure, at.index(failure.position), "", at.count(failure), at)
                    known = groups.get(failure.cause)
                    groups[failure.cause] = new if known is None else known.with_more(new)
        return sorted(groups.values(), key=lambda group: -group.count)

    def _flights(self) -> Flights | None:
        return self.passes[-1].flights if self.passes else None

    def working(self) -> list[_Working]:
        """What each worker is doing now."""
        flights = self._flights()
        if flights is None:
            return []
        order = self.ledger if len(self.passes) == 1 else None
        held: dict[str, list[Flight]] = {worker: [] for worker in flights.workers()}
        for flight in flights.in_flight():
            held.setdefault(flight.worker, []).append(flight)
        return [
            _working(worker, mine, flights.trail(worker), order) for worker, mine in held.items()
        ]


@dataclass(slots=True)
class _Working:
    """What one worker is doing; `order` knows the indices, of inputs."""

    worker: str
    order: Ledger | None
    flight: Flight | None = None
    step: Step | None = None
    at: float = 0.0

    def names(self, names: Names) -> list[str | None]:
        """Of the current input, and of those that have failed before it."""
        if self.flight is None or self.step is None:
            return []
        failed = [failure.position for failure in self.failures()]
        current = [] if self.step.position is None else [self.step.position]
        return [self.name(names, position) for position in current + failed]

    def name(self, names: Names, position: int) -> str | None:
        assert self.flight is not None
        inp = self.flight.chunk.inputs[position - self.flight.chunk.start]
        key = self.flight.id, position
        return names.of(key, inp.key if isinstance(inp, Group) else inp)

    def index(self, position: int) -> int | None:
        return None if self.order is None else self.order.index(position)

    def failures(self) -> list[Failure]:
        """Those for good that it has not delivered yet, of different causes."""
        if self.step is None or self.flight is None or not self.flight.final:
            return []
        first: dict[Hashable, Failure] = {}
        for failure in self.step.failures:
            first.setdefault(failure.cause, failure)
        return list(first.values())

    def count(self, failure: Failure) -> int:
        """How many like this one it has not delivered."""
        failures = [] if self.step is None else self.step.failures
        return sum(other.cause == failure.cause for other in failures)

    def row(self, names: Names, usual: float | None) -> dict[str, Any]:
        row: dict[str, Any] = {"worker": self.worker, "input": None, "index": None}
        if self.step is None:
            return row | {"stage": "idle", "seconds": None, "long": False}
        position = self.step.position
        if position is not None:
            row |= {"input": self.name(names, position), "index": self.index(position)}
        seconds = max(0.0, self.at - self.step.since)
        long = usual is not None and seconds > max(LONG_SECONDS, LONG_TIMES * usual)
        what = "between inputs" if is_final(self.step.state) else stage(self.step.state)
        return row | {"stage": what, "seconds": round(seconds, 3), "long": long}


def _working(
    worker: str, flights: list[Flight], trail: Trail | None, order: Ledger | None
) -> _Working:
    """Of the partitions that it holds it works on one."""
    working = _Working(worker, order, at=time.monotonic())
    for flight in flights:
        step = None if trail is None else trail.step(flight.id, RECORD_BYTES)
        if step is not None:
            working.flight, working.step = flight, step
    return working


@dataclass(slots=True)
class _Group:
    """Equal failures, with an example."""

    failure: Failure
    index: int | None
    inp: str
    count: int
    at: _Working | None = None  # who holds the example, where the ledger does not have it yet

    @classmethod
    def of(cls, cause: Cause) -> _Group:
        return cls(cause.example.failure, cause.example.index, cause.inp, cause.count)

    def with_more(self, other: _Group) -> _Group:
        """Both together; the example is the earlier one, where one can tell."""
        is_earlier = None not in (self.index, other.index) and other.index < self.index  # type: ignore[operator]
        return replace(other if is_earlier else self, count=self.count + other.count)

    @property
    def id(self) -> str:
        """Stays the same while the count grows."""
        same = repr(self.failure.cause).encode(errors="backslashreplace")
        return hashlib.blake2s(same, digest_size=6).hexdigest()

    def row(self, names: Names) -> dict[str, Any]:
        failure = self.failure
        inp = self.inp if self.at is None else self.at.name(names, failure.position)
        return {
            "id": self.id,
            "count": self.count,
            "kind": failure.kind,
            "stage": failure.stage,
            "error": cut(failure.error, REPR_LIMIT),
            "where": cut(failure.where, MESSAGE_LIMIT),
            "message": cut(failure.message, MESSAGE_LIMIT),
            "example": inp,
            "index": self.index,
        }


def _counts(ledger: Ledger, source: Source, failing: int) -> dict[str, int | None]:
    """They add up, also when the ledger is being written."""
    skipped, processed, failed, pending, _ = ledger.counts
    total = source.drawn if source.at_end or source.total is None else source.total
    left = max(0, total - skipped - processed - failed - failing - pending)
    known = source.at_end or source.total is not None
    return {
        "total": total if known else None,
        "processed": processed,
        "skipped": skipped,
        "failed": failed + failing,
        "pending": pending,
        "left": left if known else None,
    }


def _usual(ledger: Ledger) -> float | None:
    """Seconds that an input takes which is not skipped, of a sample; None before there is one."""
    step = len(ledger.states) // SAMPLE + 1
    sample = zip(ledger.states[::step], ledger.seconds[::step], strict=False)
    took = [seconds for state, seconds in sample if state in (PROCESSED, FAILED)]
    took = [seconds for seconds in took if seconds == seconds]  # those refused took none
    return median(took) if took else None


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)
