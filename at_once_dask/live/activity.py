"""The activity of each worker, read from the progress files when somebody looks.

One thing is left to the run's thread: the ``repr`` of an input, which may be code of the user's.
That thread calls it anyhow, for the slowest inputs; on the event loop it would hold up the cluster.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import PosixPath
from statistics import median
from typing import Any, Protocol

from at_once_dask.driver.flights import InFlight
from at_once_dask.protocol.events import LONG_SECONDS
from at_once_dask.protocol.progress_file import Progress
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.status import FAILED, PROCESSED, is_final, stage
from at_once_dask.protocol.task import Group
from at_once_dask.report.ledger import Ledger
from at_once_dask.user_code.text import safe_repr

NAMING_SECONDS = 0.05  # that the run's thread gives to names at a time
NAMES_KEPT = 1_000
LONG_TIMES = 5  # an input is not called long that takes less than so many times the usual
LONG_ALONE_SECONDS = 60.0  # the same while no other says what is usual
SAMPLE = 1_000  # inputs that say what is usual

_PLAIN = {str, bytes, int, float, bool, type(None), PosixPath}  # their `repr` is none of the user's


class Workers(Protocol):
    """Who works at what; a Dispatcher is one."""

    @property
    def waits(self) -> float:
        """For how many seconds nobody has worked, because there is no worker."""

    def workers(self) -> list[str]:
        """Addresses of those that may get something."""

    def in_flight(self) -> list[InFlight]:
        """The partitions that workers hold."""

    def progress_folder(self, worker: str) -> ProgressFolder | None:
        """Where `worker` leaves its progress files, when that can be seen from here."""


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


@dataclass(slots=True)
class AtWork:
    """A partition that a worker has started."""

    flight: InFlight
    progress: Progress

    @property
    def inp(self) -> Any:
        """The current input, or key; None where it is about none, or several."""
        position = self.progress.position
        if position is None:
            return None
        inp = self.flight.chunk.inputs[position - self.flight.chunk.start]
        return inp.key if isinstance(inp, Group) else inp

    def name(self, names: Names) -> str | None:
        return names.of((self.flight.id, self.progress.position), self.inp)


@dataclass(slots=True)
class Activity:
    """The activity of one worker."""

    worker: str
    current: AtWork | None  # of several at a time, the one that has been at the same for longest
    at: float

    def lacks_name(self, names: Names) -> bool:
        current = self.current
        is_named = current is not None and current.progress.position is not None
        return is_named and current is not None and current.name(names) is None

    def row(self, names: Names, ledger: Ledger | None, usual: float | None) -> dict[str, Any]:
        """As the page has it; without a `ledger` the inputs are keys, which have no index."""
        row: dict[str, Any] = {"worker": self.worker, "input": None, "index": None}
        if self.current is None:
            return row | {"stage": "idle", "seconds": None, "long": False}
        progress = self.current.progress
        if progress.position is not None:
            index = None if ledger is None else ledger.index(progress.position)
            row |= {"input": self.current.name(names), "index": index}
        seconds = max(0.0, self.at - progress.since)
        least = LONG_ALONE_SECONDS if usual is None else max(LONG_SECONDS, LONG_TIMES * usual)
        what = "between inputs" if is_final(progress.doing) else stage(progress.doing)
        return row | {"stage": what, "seconds": round(seconds, 3), "long": seconds > least}


def activities(workers: Workers | None) -> list[Activity]:
    """The activity of each worker, now."""
    if workers is None:
        return []
    at_work: dict[str, AtWork | None] = dict.fromkeys(workers.workers())
    for flight in workers.in_flight():
        folder = workers.progress_folder(flight.worker)
        progress = None if folder is None else folder.look(flight.id)
        if progress is None or progress.ended:
            continue
        other = at_work.get(flight.worker)
        if other is None or progress.since < other.progress.since:
            at_work[flight.worker] = AtWork(flight, progress)
    now = time.monotonic()
    return [Activity(worker, current, now) for worker, current in at_work.items()]


def usual_seconds(ledger: Ledger, found: list[Activity]) -> float | None:
    """Seconds that an input takes which is not skipped, of a sample; None before there is one.

    As long as nothing has come back, what the partitions say of those before the current one.
    """
    step = len(ledger.states) // SAMPLE + 1
    sample = zip(ledger.states[::step], ledger.seconds[::step], strict=False)
    took = [seconds for state, seconds in sample if state in (PROCESSED, FAILED)]
    took = [seconds for seconds in took if seconds == seconds]  # those refused took none
    if not took:
        said = [at.current.progress.usual for at in found if at.current is not None]
        took = [seconds for seconds in said if seconds is not None]
    return median(took) if took else None
