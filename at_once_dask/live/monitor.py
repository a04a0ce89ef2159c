"""The runs of a cluster as plain data: for the page, and for its JSON address.

It is put together when somebody looks, on the event loop, from what the run keeps anyhow. A run
that nobody looks at notes only how far it is, with each outcome. What is read here changes
meanwhile in the run's thread, and no lock is taken: a look shows what was true a moment ago.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from typing import Any

from at_once_dask.driver.inputs import Inputs
from at_once_dask.live.activity import Activity, Names, Workers, activities, usual_seconds
from at_once_dask.live.eta import Eta, Series
from at_once_dask.logs import log_file
from at_once_dask.protocol.status import LEFT, PENDING
from at_once_dask.report.ledger import Cause, Ledger
from at_once_dask.report.report import Report
from at_once_dask.report.summary import BROKEN, INTERRUPTED, STOPPED
from at_once_dask.user_code.text import REPR_LIMIT, cut

RUNS = 20  # that are kept
CAUSES = 20  # of a run; those with the most failures
MESSAGE_LIMIT = 300  # characters
TRACEBACKS_KEPT = 200  # of a run that goes on
NAME_SECONDS = 0.5  # for the run's thread to name the current inputs

_STATES = {STOPPED: "stopped", INTERRUPTED: "interrupted", BROKEN: "broken"}
_BRIEF = "id", "name", "begun", "state", "phase", "seconds", "inputs", "keys"


class Monitor:
    """The latest runs of one cluster."""

    def __init__(self) -> None:
        self._runs: deque[RunView] = deque(maxlen=RUNS)

    def begin(self, id: str, name: str, ledger: Ledger, inputs: Inputs) -> RunView:
        """A run starts; `name` is what people call its function."""
        view = RunView(id, name, ledger, inputs)
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
    inputs : Inputs
        Where they come from.
    """

    def __init__(self, id: str, name: str, ledger: Ledger, inputs: Inputs) -> None:
        self.id = id
        self._since = time.monotonic()
        self._head: dict[str, Any] = {
            "id": id,
            "name": cut(name, REPR_LIMIT),
            "begun": log_file.now("seconds"),
        }
        self._live: _Live | None = _Live(ledger, inputs)
        self._kept: dict[str, Any] = {}
        self._tracebacks: dict[str, str] = {}

    def begin(self, phase: str, ledger: Ledger, inputs: Inputs, eta: Eta | None = None) -> PassView:
        """A pass starts: ``map``, ``reduce`` or ``check``."""
        assert self._live is not None
        view = PassView(phase, ledger, inputs, self._live.names, eta)
        self._live.close()
        self._live.passes.append(view)
        return view

    def end(self, report: Report, ended: str, reason: str) -> None:
        """The run is over; its ledger is let go."""
        live = self._live
        if live is None:
            return
        live.close()
        is_failed = report.n_failed or report.n_keys_failed
        causes = live.ledger.causes(CAUSES)
        facts = self._facts(live, [], causes) | {
            "state": _STATES.get(ended, "failed" if is_failed else "done"),
            "reason": reason or None,
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
        self._tracebacks = {}
        self._keep_tracebacks(causes)
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
        found = [] if live.now is None else activities(live.now.workers)
        causes = live.ledger.causes(CAUSES)
        self._keep_tracebacks(causes)
        live.names.forget_asked()
        end = time.monotonic() + NAME_SECONDS
        while self._live is not None and [one for one in found if one.lacks_name(live.names)]:
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.02)
        return self._kept if self._live is None else self._facts(live, found, causes)

    def rates(self) -> list[dict[str, Any]]:
        """By pass: its phase, and points of seconds since the run began, and inputs a second."""
        live = self._live
        return self._kept["rates"] if live is None else self._rates(live)

    def traceback(self, cause: str) -> str | None:
        """The traceback of the example of a cause that was shown; None where there is none."""
        return self._tracebacks.get(cause)

    def _keep_tracebacks(self, causes: list[Cause]) -> None:
        """Somebody may open any of these, also when others are more frequent by then."""
        kept = self._tracebacks
        for cause in causes:
            id = _id(cause)
            kept.pop(id, None)  # to the end: what was not shown for longest goes first
            kept[id] = cause.example.failure.traceback
        for id in list(kept)[:-TRACEBACKS_KEPT]:
            del kept[id]

    def _summary(self, live: _Live) -> dict[str, Any]:
        now = live.now
        return self._head | {
            "state": "running",
            "phase": "start" if now is None else now.phase,
            "seconds": round(time.monotonic() - self._since, 3),
            "inputs": live.inputs(),
            "keys": live.keys(),
        }

    def _facts(self, live: _Live, found: list[Activity], causes: list[Cause]) -> dict[str, Any]:
        now = live.now
        usual = None if now is None else usual_seconds(now.ledger, found)
        of_inputs = live.ledger if len(live.passes) < 2 else None
        return self._summary(live) | {
            "reason": None,
            "rate": None if now is None else _rounded(now.rate()),
            "eta": None if now is None else _rounded(now.eta()),
            "rates": self._rates(live),
            "usual": _rounded(usual),
            "workers": sorted(
                (one.row(live.names, of_inputs, usual) for one in found),
                key=lambda row: -1.0 if row["seconds"] is None else row["seconds"],
                reverse=True,
            ),
            "n_causes": live.ledger.n_causes,
            "causes": [_row(cause) for cause in causes],
            "slowest": [
                {"index": slow.index, "input": slow.inp, "seconds": _rounded(slow.seconds)}
                for slow in live.ledger.slowest()
            ],
        }

    def _rates(self, live: _Live) -> list[dict[str, Any]]:
        return [
            {"phase": view.phase, "points": view.points(view.since - self._since)}
            for view in live.passes
        ]


class PassView:
    """One pass of a run: how fast it goes. A Watcher of the dispatcher.

    Parameters
    ----------
    phase : str
    ledger : Ledger
        What became of its inputs, or keys.
    inputs : Inputs
    names : Names
        Made while the run goes on.
    eta : Eta, optional
        That of the progress bar.
    """

    def __init__(
        self, phase: str, ledger: Ledger, inputs: Inputs, names: Names, eta: Eta | None = None
    ) -> None:
        self.phase = phase
        self.ledger = ledger
        self.workers: Workers | None = None
        self.since = time.monotonic()
        self._inputs = inputs
        self._names = names
        self._eta = Eta(self.since) if eta is None else eta
        self._series = Series(self.since)

    def begin(self, workers: Workers) -> None:
        """Who works at what, from now on."""
        self.workers = workers

    def tick(self) -> None:
        now = time.monotonic()
        self._eta.note(now, self.ledger.n_handled, self.ledger.n_worked)
        self._series.note(now, self.ledger.n_worked)
        self._names.make()

    def running(self, event: object) -> None:
        """The progress files say more."""

    def close(self) -> None:
        self.workers = None
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
        return _counts(self.ledger, self._inputs)

    def points(self, offset: float) -> list[list[float]]:
        return [[round(at + offset, 2), round(rate, 2)] for at, rate in self._series.rates()]


class _Live:
    """The things that a run has while it goes on."""

    def __init__(self, ledger: Ledger, inputs: Inputs) -> None:
        self.ledger = ledger
        self.passes: list[PassView] = []
        self.names = Names()
        self._inputs = inputs

    @property
    def now(self) -> PassView | None:
        """The latest pass."""
        return self.passes[-1] if self.passes else None

    def close(self) -> None:
        """The latest pass is over."""
        if self.now is not None:
            self.now.close()

    def inputs(self) -> dict[str, int | None]:
        return self.passes[0].counts() if self.passes else _counts(self.ledger, self._inputs)

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


def _counts(ledger: Ledger, inputs: Inputs) -> dict[str, int | None]:
    """They add up, also when the ledger is being written."""
    skipped, processed, failed, pending, _ = ledger.counts
    total = inputs.drawn if inputs.at_end or inputs.total is None else inputs.total
    left = max(0, total - skipped - processed - failed - pending)
    known = inputs.at_end or inputs.total is not None
    return {
        "total": total if known else None,
        "processed": processed,
        "skipped": skipped,
        "failed": failed,
        "pending": pending,
        "left": left if known else None,
    }


def _id(cause: Cause) -> str:
    """Stays the same while the count grows."""
    same = repr(cause.example.failure.cause).encode(errors="backslashreplace")
    return hashlib.blake2s(same, digest_size=6).hexdigest()


def _row(cause: Cause) -> dict[str, Any]:
    failure = cause.example.failure
    return {
        "id": _id(cause),
        "count": cause.count,
        "kind": failure.kind,
        "stage": failure.stage,
        "error": cut(failure.error, REPR_LIMIT),
        "where": cut(failure.where, MESSAGE_LIMIT),
        "message": cut(failure.message, MESSAGE_LIMIT),
        "example": cause.inp,
        "index": cause.example.index,
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)
