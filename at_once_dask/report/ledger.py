"""The ledger: what became of each input, in a few bytes, filled in as outcomes arrive."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from at_once_dask.protocol.failure import Failure, Same
from at_once_dask.protocol.status import FAILED, LEFT, NAMES, PENDING, PROCESSED, SKIPPED
from at_once_dask.user_code.text import safe_repr

if TYPE_CHECKING:
    from at_once_dask.protocol.task import Outcome

SLOWEST = 20  # inputs that are known by name
NAMED = 5  # failures of each cause that are known by name

_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Failed:
    """A failure with what failed: the input as it was drawn, or the key."""

    failure: Failure
    inp: Any
    index: int | None

    @property
    def order(self) -> tuple[bool, int]:
        """Inputs by position as given, then keys by first appearance."""
        return self.index is None, self.failure.position if self.index is None else self.index


@dataclass(frozen=True, slots=True)
class Cause:
    """Equal failures: how many, and the first of them, each with the repr of its input or key.

    The reprs are as they were then: inputs may change. `host`: the one that all were on, or empty.
    """

    count: int
    first: tuple[tuple[Failed, str], ...]
    host: str = ""

    @property
    def example(self) -> Failed:
        return self.first[0][0]

    @property
    def inp(self) -> str:
        """The repr of the example's."""
        return self.first[0][1]


@dataclass(frozen=True, slots=True, order=True)
class Slow:
    """An input that took long, with its repr: the input itself is not kept for that."""

    seconds: float
    index: int
    inp: str


class Ledger:
    """One row an input, by position in the order of use: 21 bytes.

    Parameters
    ----------
    order : array of int, optional
        For each position in the order of use the one in the list as given.
    n_slowest : int
        Of how many that took longest it keeps the repr, which takes its time.

    Attributes
    ----------
    states : bytearray
        Codes into ``status.NAMES``.
    starts, seconds : array of float
        Since the epoch, and how long; NaN for what was not handled.
    workers : array of int
        Numbers into `names`; -1 for what was not handled.
    names : list of str
        The workers' addresses.
    failed : list of Failed
        Inputs, and after them keys.
    """

    def __init__(self, order: array[int] | None = None, n_slowest: int = SLOWEST) -> None:
        self.order = order
        self._n_slowest = n_slowest
        self.states = bytearray()
        self.starts = array("d")
        self.seconds = array("d")
        self.workers = array("i")
        self.names: list[str] = []
        self.failed: list[Failed] = []
        self._causes: dict[Same, Cause] = {}
        self._slowest: list[Slow] = []  # a heap
        self.counts = [0] * len(NAMES)

    def draw(self, n: int) -> None:
        """Make room: `n` inputs are known by now; those not handled yet are left."""
        more = n - len(self.states)
        if more > 0:
            self.states.extend(bytes([LEFT]) * more)
            self.starts.extend(array("d", [_NAN]) * more)
            self.seconds.extend(array("d", [_NAN]) * more)
            self.workers.extend(array("i", [-1]) * more)
            self.counts[LEFT] += more

    def record(self, start: int, outcome: Outcome, inputs: list[Any]) -> None:
        """Enter the outcome of the partition that began at `start`; `inputs` are its inputs."""
        import numpy as np  # importing this module must bring in nothing heavy

        stop, marks = outcome.stop, np.array(outcome.marks)
        failed = [self._failed(one, inputs[one.position - start]) for one in outcome.failures]
        named = self._named(failed)
        self.starts[start:stop] = array("d", (marks[:-1] + outcome.epoch).tobytes())
        seconds = np.diff(marks)
        self.seconds[start:stop] = array("d", seconds.tobytes())
        self.workers[start:stop] = array("i", [self._number(outcome.worker)]) * (stop - start)
        if LEFT in outcome.states:
            self._forget_the_left(start, outcome.states)
        handled = np.frombuffer(outcome.states, dtype=np.uint8) != LEFT
        self._note_slowest(start, np.where(handled, seconds, _NAN), inputs)
        # Behind all that calls a repr, which may be slow: who looks sees states and causes agree.
        self._set_states(start, outcome.states)
        self._enter(failed, named)

    @property
    def n_keys_failed(self) -> int:
        return sum(failed.index is None for failed in self.failed)

    def without_keys(self) -> Ledger:
        """A copy that knows of inputs only."""
        failed = [one for one in self.failed if one.index is not None]
        causes = {s: cause for s, cause in self._causes.items() if cause.example.index is not None}
        return self._copy(failed, causes)

    def _copy(self, failed: list[Failed], causes: dict[Same, Cause]) -> Ledger:
        """With other failures; all else is the same."""
        copy = object.__new__(Ledger)
        copy.__dict__.update(self.__dict__, failed=failed, _causes=causes)
        return copy

    @property
    def n_worked(self) -> int:
        """Inputs that were handled, and not skipped."""
        counts = self.counts
        return counts[PROCESSED] + counts[FAILED] + counts[PENDING]

    @property
    def n_handled(self) -> int:
        return self.n_worked + self.counts[SKIPPED]

    def causes(self, limit: int | None = None) -> list[Cause]:
        """Equal failures grouped, the most frequent first; `limit` at most."""
        causes = list(self._causes.values())

        def rank(cause: Cause) -> tuple[int, tuple[bool, int]]:
            return -cause.count, cause.example.order

        return heapq.nsmallest(len(causes) if limit is None else limit, causes, key=rank)

    def as_they_came(self, start: int, stop: int) -> list[Cause]:
        """The causes in the order in which each came first."""
        return list(islice(self._causes.values(), start, stop))

    def cause(self, same: Same) -> Cause | None:
        """The failures that have this in common."""
        return self._causes.get(same)

    @property
    def n_causes(self) -> int:
        return len(self._causes)

    def only_on(self, cause: Cause) -> str:
        """The host that all failures of a cause were on, where that says something."""
        from at_once_dask.protocol.task import host_of  # importing this must bring in nothing heavy

        hosts = set(map(host_of, self.names))
        return cause.host if cause.count > 1 and len(hosts) > 1 else ""

    def slowest(self) -> list[Slow]:
        """The inputs that took longest, the slowest first."""
        return sorted(self._slowest, reverse=True)

    def _forget_the_left(self, start: int, states: bytearray) -> None:
        """Clear what has failed and is to be tried again: it has not been handled."""
        for position, state in enumerate(states, start):
            if state == LEFT:
                self.starts[position] = self.seconds[position] = _NAN
                self.workers[position] = -1

    def refuse(self, failure: Failure, inp: Any) -> None:
        """Enter an input that failed before it got anywhere."""
        failed = [self._failed(failure, inp)]
        named = self._named(failed)
        self._set_states(failure.position, bytes([FAILED]))
        self._enter(failed, named)

    def fail_keys(self, failures: list[Failure], keys: list[Any]) -> None:
        """Enter keys that failed in the reduction."""
        failed = [Failed(*one, None) for one in zip(failures, keys, strict=True)]
        self._enter(failed, self._named(failed))

    def changed(self, change: Callable[[Failed], Failed]) -> Ledger:
        """A copy whose failures are others."""
        changed = {id(failed): change(failed) for failed in self.failed}
        causes = {
            same: replace(cause, first=tuple((changed[id(one)], inp) for one, inp in cause.first))
            for same, cause in self._causes.items()
        }
        return self._copy(list(changed.values()), causes)

    def index(self, position: int) -> int:
        """The position in the list as given."""
        return position if self.order is None else self.order[position]

    def _failed(self, failure: Failure, inp: Any) -> Failed:
        return Failed(failure, inp, self.index(failure.position))

    def _named(self, failed: list[Failed]) -> dict[Same, Cause]:
        """The causes with these `failed` in them; reprs are made of the first of each alone."""
        from toolz import groupby  # importing this module must bring in nothing heavy

        equal = groupby(lambda one: one.failure.cause, failed)
        return {same: self._cause_with(same, some) for same, some in equal.items()}

    def _cause_with(self, same: Same, failed: list[Failed]) -> Cause:
        known = self._causes.get(same, Cause(0, ()))
        last = known.first[-1][0].order if len(known.first) == NAMED else None
        new = heapq.nsmallest(NAMED, failed, key=attrgetter("order"))
        named = [(one, safe_repr(one.inp)) for one in new if last is None or one.order < last]
        first = sorted([*known.first, *named], key=lambda pair: pair[0].order)
        hosts = {one.failure.host for one in failed} | ({known.host} if known.count else set())
        host = hosts.pop() if len(hosts) == 1 else ""
        return Cause(known.count + len(failed), tuple(first[:NAMED]), host)

    def _enter(self, failed: list[Failed], causes: dict[Same, Cause]) -> None:
        self.failed += failed
        self._causes |= causes

    def _note_slowest(self, start: int, seconds: Any, inputs: list[Any]) -> None:
        """Keep the inputs of a partition that are among the slowest so far."""
        kept, most = self._slowest, self._n_slowest
        if not most:
            return
        least = kept[0].seconds if len(kept) == most else -1.0
        longer = (seconds > least).nonzero()[0]
        for offset in longer[seconds[longer].argsort()[-most:]].tolist():
            slow = Slow(
                float(seconds[offset]), self.index(start + offset), safe_repr(inputs[offset])
            )
            (heapq.heappushpop if len(kept) == most else heapq.heappush)(kept, slow)

    def _set_states(self, start: int, states: bytes | bytearray) -> None:
        stop = start + len(states)
        for code in range(len(NAMES)):
            self.counts[code] += states.count(code) - self.states.count(code, start, stop)
        self.states[start:stop] = states

    def _number(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)
