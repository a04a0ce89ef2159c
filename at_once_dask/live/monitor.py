"""What can be seen of the runs of a cluster, as plain data: for the page, and for its JSON address.

It is put together when somebody looks, on the event loop, from what the run keeps anyhow. A run
that nobody looks at notes only how far it is, with each outcome. What is read here changes
meanwhile in the run's thread, and no lock is taken: a look shows what was true a moment ago.

A failure is in the crumb of its partition first, and in the ledger when that has come back. So the
crumbs are read first, and what the ledger has got meanwhile is left out.

One thing is left to the run's thread: the ``repr`` of an input, which may be code of the user's.
That thread calls it anyhow, for the slowest inputs; on the event loop it would hold up the cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import time
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import PosixPath
from statistics import median
from typing import Any, Protocol

from at_once_dask.driver.inputs import Chunk, Source
from at_once_dask.live.eta import Eta, Series
from at_once_dask.logs import log_file
from at_once_dask.protocol.failure import Failure, Same
from at_once_dask.protocol.progress_file import Step, Trail
from at_once_dask.protocol.status import FAILED, LEFT, PENDING, PROCESSED, is_final, stage
from at_once_dask.protocol.task import Group
from at_once_dask.report.ledger import Cause, Ledger
from at_once_dask.report.report import Report
from at_once_dask.report.summary import BROKEN, INTERRUPTED, STOPPED
from at_once_dask.user_code.text import REPR_LIMIT, cut, safe_repr

switched_on = True  # for a benchmark of what it costs

RUNS = 20  # that are kept
CAUSES = 20  # of a run; those with the most failures
MESSAGE_LIMIT = 300  # characters
RECORD_BYTES = 65_536  # of each partition in flight, for failures that are not delivered yet
TRACEBACKS_KEPT = 200  # of a run that goes on
NAME_SECONDS = 0.5  # for the run's thread to name the current inputs
NAMING_SECONDS = 0.05  # that it gives to that at a time
NAMES_KEPT = 1_000
LONG_SECONDS = 2.0  # an input that runs for less is not called long, ...
LONG_TIMES = 5  # ... nor one that takes less than so many times the usual
LONG_ALONE_SECONDS = 60.0  # the same while no other tells what is usual
SAMPLE = 1_000  # inputs that tell what is usual

_STATES = {STOPPED: "stopped", INTERRUPTED: "interrupted", BROKEN: "broken"}
_BRIEF = "id", "name", "begun", "state", "phase", "seconds", "inputs", "keys"
_PLAIN = {str, bytes, int, float, bool, type(None), PosixPath}  # their `repr` is none of the user's


@dataclass(frozen=True, slots=True)
class Flight:
    """A partition in flight; `final` when a failure in it has no attempts left.

    `failed`: how many of its inputs have failed for good, as its worker tells.
    """

    id: str
    worker: str
    chunk: Chunk
    final: bool
    failed: int


class Flights(Protocol):
    """What is in flight; a Window is one."""

    def workers(self) -> list[str]:
        """Addresses of those that may get something."""

    def in_flight(self) -> list[Flight]:
        """What the workers hold."""

    def trail(self, worker: str) -> Trail | None:
        """Where `worker` leaves its crumbs, when that can be seen from here."""


def failing(flights: Flights | None, ledger: Ledger) -> int:
    """How many inputs have failed in partitions that the ledger does not know yet."""
    held = [] if flights is None else flights.in_flight()
    return sum(one.failed for one in held if ledger.states[one.chunk.start] == LEFT)


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
            "name": cut(name, REPR_LIMIT),
            "begun": log_file.now("seconds"),
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
        groups, n_causes = live.groups([])
        facts = self._facts(live, [], groups, n_causes) | {
            "state": state,
            "reason": reason or None,
            "workers": [],
        }
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
        groups, n_causes = live.groups(working)
        self._keep_tracebacks(groups)
        live.names.forget_asked()
        end = time.monotonic() + NAME_SECONDS
        while self._live is not None and live.lacks_names(working, groups):
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.02)
        return self._kept if self._live is None else self._facts(live, working, groups, n_causes)

    def rates(self) -> list[dict[str, Any]]:
        """By pass: its phase, and points of seconds since the run began, and inputs a second."""
        live = self._live
        return self._kept["rates"] if live is None else self._rates(live)

    def traceback(self, cause: str) -> str | None:
        """Of the example of a cause that was told; None where there is no such cause."""
        return self._tracebacks.get(cause)

    def _keep_tracebacks(self, groups: list[_Group]) -> None:
        """Somebody may open any of these, also when others are more frequent by then."""
        kept = self._tracebacks
        for group in groups:
            kept.pop(group.id, None)  # to the end: who was not told for longest goes first
            kept[group.id] = group.failure.traceback
        for id in list(kept)[:-TRACEBACKS_KEPT]:
            del kept[id]

    def _summary(self, live: _Live) -> dict[str, Any]:
        now = live.now
        return self._head | {
            "state": "running",
            "phase": "start" if now is None else now.phase,
            "seconds": round(time.monotonic() - self._begun, 3),
            "inputs": live.inputs(),
            "keys": live.keys(),
        }

    def _facts(
        self, live: _Live, working: list[_Working], groups: list[_Group], n_causes: int
    ) -> dict[str, Any]:
        now = live.now
        usual = None if now is None else _usual(now.ledger, working)
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
            "n_causes": n_causes,
            "causes": [group.row(live.names) for group in groups],
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
        self.begun = time.monotonic()
        self._eta = Eta(self.begun)
        self._series = Series(self.begun)

    def begin(self, flights: Flights) -> None:
        """What is in flight, from now on."""
        self.flights = flights

    def tick(self) -> None:
        now = time.monotonic()
        self._eta.note(now, self.ledger.n_handled, self.ledger.n_worked)
        self._series.note(now, self.ledger.n_worked)
        self.names.make()

    def running(self, event: object) -> None:
        """The crumbs tell more."""

    def close(self) -> None:
        self.flights = None
        self._series.note(time.monotonic(), self.ledger.n_worked, last=True)

    def rate(self) -> float:
        """Inputs a second, those aside that were skipped."""
        return self._series.rate(time.monotonic(), self.ledger.n_worked)

    def eta(self) -> float | None:
        """Seconds; None when nobody can know."""
        left, now = self.counts()["left"], time.monotonic()
        if left is None or self._eta.is_stale(left, now):
            return None
        return self._eta.seconds(left, now)

    def counts(self) -> dict[str, int | None]:
        return _counts(self.ledger, self.source, failing(self.flights, self.ledger))

    def points(self, offset: float) -> list[list[float]]:
        return [[round(at + offset, 2), round(rate, 2)] for at, rate in self._series.rates()]


class Names:
    """Texts for inputs, made in the run's thread; asked for on the event loop."""

    def __init__(self) -> None:
        self._asked: dict[Hashable, Any] = {}
        self._made: dict[Hashable, str | None] = {}  # None while it is being made

    def of(self, key: Hashable, inp: Any) -> str | None:
        """The repr of `inp`; None when it is only asked for by this."""
        if type(inp) in _PLAIN:
            return safe_repr(inp)
        if key not in self._made:
            self._asked[key] = inp
        return self._made.get(key)

    def forget_asked(self) -> None:
        """A new look: what an earlier one has asked for may not be current any more."""
        self._asked = {}

    def make(self) -> None:
        """As many as were asked for, or as there is time for."""
        asked, end = self._asked, time.monotonic() + NAMING_SECONDS
        while asked and time.monotonic() < end:
            key, inp = asked.popitem()
            if key in self._made:
                continue
            if len(self._made) >= NAMES_KEPT:
                self._made = {}
            self._made[key] = None
            self._made[key] = safe_repr(inp)


class _Live:
    """What a run has while it goes on."""

    def __init__(self, ledger: Ledger, source: Source) -> None:
        self.ledger = ledger
        self.source = source
        self.passes: list[PassView] = []
        self.names = Names()

    @property
    def now(self) -> PassView | None:
        """The latest pass."""
        return self.passes[-1] if self.passes else None

    def close(self) -> None:
        """The latest pass is over."""
        if self.now is not None:
            self.now.close()

    def inputs(self) -> dict[str, int | None]:
        if not self.passes:
            return _counts(self.ledger, self.source, 0)
        return self.passes[0].counts()

    def keys(self) -> dict[str, int | None] | None:
        """Counts of the reduction; None before there is one."""
        if len(self.passes) < 2:
            return None
        counts = self.passes[1].counts()
        return {
            "total": counts["total"],
            "reduced": counts["processed"],
            "failed": counts["failed"],
            "left": counts["left"],
        }

    def groups(self, working: list[_Working]) -> tuple[list[_Group], int]:
        """The most frequent causes, and how many there are.

        With those of failures that `working` has not delivered yet; these were read before.
        """
        new: dict[Same, _Group] = {}
        for group in (group for at in working for held in at.held for group in held.groups()):
            known = new.get(group.failure.cause)
            new[group.failure.cause] = group if known is None else known.with_more(group)
        n_causes = self.ledger.n_causes + sum(self.ledger.cause(same) is None for same in new)
        found = [self._with_recorded(same, group) for same, group in new.items()]
        recorded = self.ledger.causes(CAUSES + len(new))
        found += [_Group.of(one) for one in recorded if one.example.failure.cause not in new]
        return heapq.nsmallest(CAUSES, found, key=lambda group: group.rank), n_causes

    def _with_recorded(self, same: Same, group: _Group) -> _Group:
        cause = self.ledger.cause(same)
        return group if cause is None else _Group.of(cause).with_more(group)

    def lacks_names(self, working: list[_Working], groups: list[_Group]) -> bool:
        """Whether some of what is told has no name yet; all of it is asked for."""
        current = [(held, held.step.position) for at in working if (held := at.current)]
        named = [held.name(self.names, at) for held, at in current if at is not None]
        return None in [*named, *(group.name(self.names) for group in groups)]

    def working(self) -> list[_Working]:
        """What each worker is doing now."""
        now = self.now
        flights = None if now is None else now.flights
        if now is None or flights is None:
            return []
        by_worker: dict[str, list[_Held]] = {worker: [] for worker in flights.workers()}
        for flight in flights.in_flight():
            mine = by_worker.setdefault(flight.worker, [])
            trail = flights.trail(flight.worker)
            step = None if trail is None else trail.step(flight.id, RECORD_BYTES)
            if step is not None:
                mine.append(_Held(flight, step, now.ledger, of_keys=len(self.passes) > 1))
        at = time.monotonic()
        return [_Working(worker, held, at) for worker, held in by_worker.items()]


@dataclass(slots=True)
class _Held:
    """A partition that a worker has begun, or that has not arrived yet; `ledger` is its pass's."""

    flight: Flight
    step: Step
    ledger: Ledger
    of_keys: bool

    def name(self, names: Names, position: int) -> str | None:
        inp = self.flight.chunk.inputs[position - self.flight.chunk.start]
        key = self.flight.id, position
        return names.of(key, inp.key if isinstance(inp, Group) else inp)

    def index(self, position: int) -> int | None:
        return None if self.of_keys else self.ledger.index(position)

    def groups(self) -> Iterable[_Group]:
        """Failures for good that the ledger does not have yet."""
        found: dict[Same, _Group] = {}
        for failure in self.step.failures if self.flight.final else []:
            known = found.get(failure.cause)
            if self.ledger.states[failure.position] != LEFT:
                continue
            if known is None:
                index = self.index(failure.position)
                known = found[failure.cause] = _Group(failure, index, 0, held=self)
                known.more = self.step.more
            known.count += 1
        return found.values()


@dataclass(slots=True)
class _Working:
    """What one worker holds."""

    worker: str
    held: list[_Held]
    at: float

    @property
    def current(self) -> _Held | None:
        """It works on one partition at a time."""
        return next((held for held in self.held if not held.step.ended), None)

    def row(self, names: Names, usual: float | None) -> dict[str, Any]:
        row: dict[str, Any] = {"worker": self.worker, "input": None, "index": None}
        held = self.current
        if held is None:
            return row | {"stage": "idle", "seconds": None, "long": False}
        step = held.step
        if step.position is not None:
            index = held.index(step.position)
            row |= {"input": held.name(names, step.position), "index": index}
        seconds = max(0.0, self.at - step.since)
        least = LONG_ALONE_SECONDS if usual is None else max(LONG_SECONDS, LONG_TIMES * usual)
        what = "between inputs" if is_final(step.state) else stage(step.state)
        return row | {"stage": what, "seconds": round(seconds, 3), "long": seconds > least}


@dataclass(slots=True)
class _Group:
    """Equal failures, with an example; `more` when not all of them were counted."""

    failure: Failure
    index: int | None
    count: int
    inp: str = ""
    held: _Held | None = None  # the example is in there, where the ledger does not have it yet
    more: bool = False

    @classmethod
    def of(cls, cause: Cause) -> _Group:
        return cls(cause.example.failure, cause.example.index, cause.count, cause.inp)

    def with_more(self, other: _Group) -> _Group:
        """Both together; the example is the earlier one, where one can tell."""
        is_earlier = None not in (self.index, other.index) and other.index < self.index  # type: ignore[operator]
        return replace(
            other if is_earlier else self,
            count=self.count + other.count,
            more=self.more or other.more,
        )

    @property
    def rank(self) -> tuple[int, bool, int]:
        """The most frequent first, then the earliest, keys last."""
        return -self.count, self.index is None, self.index or 0

    def name(self, names: Names) -> str | None:
        """Of the example."""
        held = self.held
        return self.inp if held is None else held.name(names, self.failure.position)

    @property
    def id(self) -> str:
        """Stays the same while the count grows."""
        same = repr(self.failure.cause).encode(errors="backslashreplace")
        return hashlib.blake2s(same, digest_size=6).hexdigest()

    def row(self, names: Names) -> dict[str, Any]:
        failure = self.failure
        return {
            "id": self.id,
            "count": self.count,
            "at_least": self.more,
            "kind": failure.kind,
            "stage": failure.stage,
            "error": cut(failure.error, REPR_LIMIT),
            "where": cut(failure.where, MESSAGE_LIMIT),
            "message": cut(failure.message, MESSAGE_LIMIT),
            "example": self.name(names),
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


def _usual(ledger: Ledger, working: list[_Working]) -> float | None:
    """Seconds that an input takes which is not skipped, of a sample; None before there is one.

    As long as nothing has come back, what the partitions tell of those before the current one.
    """
    step = len(ledger.states) // SAMPLE + 1
    sample = zip(ledger.states[::step], ledger.seconds[::step], strict=False)
    took = [seconds for state, seconds in sample if state in (PROCESSED, FAILED)]
    took = [seconds for seconds in took if seconds == seconds]  # those refused took none
    if not took:
        told = [held.step.usual for at in working for held in at.held]
        took = [seconds for seconds in told if seconds is not None]
    return median(took) if took else None


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)
