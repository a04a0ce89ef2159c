"""Where outcomes go: into the ledger, into the groups of a map-reduce, into a plan."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any, Protocol

from at_once_dask.driver.flights import InFlight
from at_once_dask.driver.inputs import Chunk, Inputs, Retries
from at_once_dask.protocol.failure import Failure, from_exception
from at_once_dask.protocol.status import FAILED, LEFT, PENDING, SKIPPED
from at_once_dask.protocol.task import Group, MapOutcome, Outcome, ReduceOutcome, host_of
from at_once_dask.reduction.groups import Groups
from at_once_dask.report.ledger import Ledger
from at_once_dask.report.report import Plan
from at_once_dask.report.summary import MESSAGE_IN_TEXT
from at_once_dask.user_code import pickling
from at_once_dask.user_code.text import cut, safe_repr

LogFailure = Callable[[Failure, Any, int | None], None]


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


class Collector:
    """Takes outcomes in: what has attempts left waits, all else goes into the sink.

    Attributes
    ----------
    comparing : bool
        Whether it is still to be seen that `check_inp` gives what `process_inp` gave.
    """

    def __init__(
        self,
        sink: Sink,
        inputs: Inputs,
        retries: Retries,
        clock: Callable[[], float],
        comparing: bool,
    ) -> None:
        self._sink = sink
        self._inputs = inputs
        self._retries = retries
        self._clock = clock
        self.comparing = comparing

    def take(self, flight: InFlight, outcome: Outcome) -> None:
        """Take what a worker has sent; what it has not handled goes back to the inputs."""
        chunk = flight.chunk
        if outcome.unreadable:
            self._inputs.give_back(replace(flight.rest, singly=True))
            return
        if isinstance(outcome, MapOutcome):
            self._compare(outcome, chunk)
        if outcome.states:
            self._record(chunk.start, outcome, chunk.inputs)
        self._inputs.give_back(chunk.part(outcome.stop, flight.limit))

    def recover(self, part: Chunk, outcome: Outcome) -> None:
        """Take what was put together of a worker that died."""
        failures = outcome.failures
        self._record(part.start, outcome, part.inputs)
        for failure in failures:
            if failure.kind != "exception":  # those were logged where they happened
                self._sink.log(failure, part.inputs[failure.position - part.start])

    def _compare(self, outcome: MapOutcome, chunk: Chunk) -> None:
        """Count one difference, and leave further ones aside."""
        difference = outcome.difference
        if difference is not None and self.comparing:
            outcome.states[difference.position - chunk.start] = FAILED
            outcome.failures.append(difference)
            self._sink.log(difference, chunk.inputs[difference.position - chunk.start])
        if outcome.compared:
            self.comparing = False

    def _record(self, start: int, outcome: Outcome, inputs: list[Any]) -> None:
        final, waiting = [], {}
        for failure in outcome.failures:
            if self._retries.count(failure):
                final.append(failure)
                continue
            offset = failure.position - start
            outcome.states[offset] = LEFT
            waiting[failure.position] = inputs[offset]
        self._retries.wait(waiting, self._clock(), host_of(outcome.worker))
        outcome.failures = final
        self._sink.record(start, outcome, inputs)


class MapSink(Sink):
    """Outcomes of the map pass.

    Parameters
    ----------
    ledger, groups
    log_failure : callable
        Called with a failure, its input and the position of that in the list as given.
    note : callable
        Called once, with what somebody should know.
    """

    def __init__(
        self,
        ledger: Ledger,
        groups: Groups,
        log_failure: LogFailure,
        note: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._groups = groups
        self._log_failure = log_failure
        self._note: Callable[[str], None] | None = note

    def draw(self, n: int) -> None:
        self._ledger.draw(n)

    def record(self, start: int, outcome: Outcome, inputs: list[Any]) -> None:
        assert isinstance(outcome, MapOutcome)
        self._ledger.record(start, outcome, inputs)
        self._say_once(start, outcome, inputs)
        if outcome.piece is not None:
            self._groups.add(start, outcome.piece)
        for position, piece in outcome.apart:
            self._groups.add(position, pickling.loads(piece))

    def _say_once(self, start: int, outcome: MapOutcome, inputs: list[Any]) -> None:
        text = outcome.note or next(filter(None, map(_missing_there, outcome.failures)), None)
        if outcome.returned is not None:
            position, value = outcome.returned
            text = _dropped(inputs[position - start], value)
        if text is not None and self._note is not None:
            note, self._note = self._note, None
            note(text)

    def refuse(self, failure: Failure, inp: Any) -> None:
        self._ledger.refuse(failure, inp)
        self.log(failure, inp)

    def log(self, failure: Failure, inp: Any) -> None:
        self._log_failure(failure, inp, self._ledger.index(failure.position))


def _missing_there(failure: Failure) -> str | None:
    """Say how a module that is here gets to workers of other people's clusters."""
    if failure.error != "ModuleNotFoundError":
        return None
    _, _, rest = failure.message.partition("No module named '")
    name = rest.partition("'")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    return (
        f"the workers cannot import {name}, which is here; send it there with"
        f" client.upload_file({spec.origin!r}), or install it there, and run the same again"
    )


def _dropped(inp: Any, value: str) -> str:
    """Say that return values are dropped: people come from ``Pool.map``."""
    return (
        f"process_inp returns values, such as {cut(value, MESSAGE_IN_TEXT)} for input"
        f" {safe_repr(inp)}, and in a map-only run they are dropped; save them in process_inp,"
        " or get them back by position: run(enumerate(inp_list), None, lambda item: {item[0]:"
        " process_inp(item[1])}, reduce_fn=lambda values: values[0])"
    )


class PlanSink(MapSink):
    """Outcomes of a plan: which inputs are pending."""

    def __init__(
        self,
        ledger: Ledger,
        groups: Groups,
        log_failure: LogFailure,
        note: Callable[[str], None],
    ) -> None:
        super().__init__(ledger, groups, log_failure, note)
        self._pending: list[tuple[int, Any]] = []

    def record(self, start: int, outcome: Outcome, inputs: list[Any]) -> None:
        super().record(start, outcome, inputs)
        self._pending += [
            (start + offset, inputs[offset])
            for offset, state in enumerate(outcome.states)
            if state == PENDING
        ]

    def plan(self) -> Plan[Any]:
        ledger = self._ledger
        return Plan(
            n_inputs=sum(ledger.counts),
            n_done=ledger.counts[SKIPPED],
            pending=[inp for _, inp in sorted(self._pending, key=itemgetter(0))],
            failed=tuple(ledger.failed),
        )


class ReduceSink(Sink):
    """Outcomes of the reduce pass: values by key.

    Parameters
    ----------
    ledger : Ledger
        What became of the keys.
    run_ledger : Ledger
        That of the run, which has the keys that failed.
    log_failure : callable

    Attributes
    ----------
    reduced : dict of int to (key, value)
        By position of the key.
    """

    def __init__(self, ledger: Ledger, run_ledger: Ledger, log_failure: LogFailure) -> None:
        self._ledger = ledger
        self._run_ledger = run_ledger
        self._log_failure = log_failure
        self.reduced: dict[int, tuple[Any, Any]] = {}

    def draw(self, n: int) -> None:
        self._ledger.draw(n)

    def record(self, start: int, outcome: Outcome, inputs: list[Group]) -> None:
        assert isinstance(outcome, ReduceOutcome)
        keys = [group.key for group in inputs]
        failures = outcome.failures[:]
        for position, pickled in outcome.values:
            try:
                self.reduced[position] = keys[position - start], pickling.loads(pickled)
            except Exception as error:
                outcome.states[position - start] = FAILED
                failures.append(from_exception(position, "reduce", error))
                failures[-1].final = True
                self.log(failures[-1], inputs[position - start])
        failed = [keys[failure.position - start] for failure in failures]
        self._run_ledger.fail_keys(failures, failed)
        self._ledger.record(start, replace(outcome, failures=[]), keys)  # these are the run's

    def refuse(self, failure: Failure, inp: Group) -> None:
        failure.stage = "reduce"
        self._ledger.refuse(failure, inp)
        self._run_ledger.fail_keys([failure], [inp.key])
        self.log(failure, inp)

    def log(self, failure: Failure, inp: Group) -> None:
        self._log_failure(failure, inp.key, None)
