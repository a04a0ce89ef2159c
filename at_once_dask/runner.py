"""One run: the map pass, the reduce pass, and what came of them."""

from __future__ import annotations

import random
import time
import uuid
from array import array
from collections.abc import Sized
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

from at_once_dask import cluster, journal, pickles
from at_once_dask.crew import Crew, pickled_job
from at_once_dask.failure import Failure, from_exception
from at_once_dask.flow import Job, Outcome
from at_once_dask.gather import Piece
from at_once_dask.item import PENDING, SKIPPED
from at_once_dask.ledger import Ledger
from at_once_dask.options import Options
from at_once_dask.reduction import Group, Groups
from at_once_dask.report import Facts, Plan, Reduction, Report
from at_once_dask.source import Source
from at_once_dask.ticker import Silent, Ticker
from at_once_dask.window import Sink, Window


class Run:
    """The state of one run, from the checked arguments to the report.

    Parameters
    ----------
    options : Options
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.id = uuid.uuid4().hex[:12]
        # What may yet be wrong with the call, before anything is drawn from the list.
        self.logfile = journal.writable_path()
        self.client = cluster.lent(options.client)
        self.job = pickled_job(
            Job(options.check_inp, options.process_inp, options.reduce_fn, options.combine_fn)
        )
        self.source = _source(options)
        self.ledger = Ledger(self.source.order)
        self.groups = Groups()
        self.reduced: dict[int, tuple[Any, Any]] = {}  # by position: key, value
        self.dashboard_link: str | None = None
        self._begun = time.monotonic()

    def map(self, crew: Crew, sink: Sink | None = None, what: str = "map") -> str | None:
        """Every input through check and process; why it stopped early, or None."""
        sink = MapSink(self) if sink is None else sink
        stop = self.options.on_error == "stop"
        with self._ticker(self.ledger, self.source.total, what) as ticker:
            return Window(
                self.id,
                self.source,
                crew,
                sink,
                ticker,
                cautious=stop,
                enough=self._failed if stop else lambda: None,
            ).run()

    def reduce(self, crew: Crew) -> str | None:
        """Every key through the fold and `reduce_fn`; why it stopped early, or None."""
        groups = Source(self.groups, len(self.groups))
        ledger = Ledger()
        with self._ticker(ledger, groups.total, "reduce") as ticker:
            sink = _ReduceSink(self, ledger)
            return Window(self.id, groups, crew, sink, ticker, reducing=True).run()

    def report(self) -> Report:
        """What became of the inputs; however far the run came."""
        self.ledger.draw(self._n_inputs())
        facts = Facts(
            run=self.id,
            seconds=time.monotonic() - self._begun,
            dashboard_link=self.dashboard_link,
            logfile=self.logfile,
            checked=self.options.check_inp is not None,
        )
        return Report(facts, self.ledger)

    def reduction(self, report: Report) -> Reduction[Any, Any]:
        """What was reduced, keys in order of first appearance."""
        reduction = Reduction(self.reduced[position] for position in sorted(self.reduced))
        reduction.report = report
        return reduction

    @cached_property
    def book(self) -> journal.Book:
        """The log of this run; the first look at it creates the file."""
        return journal.open_book(self.id)

    def close(self) -> None:
        self.groups.close()

    def _failed(self) -> str | None:
        return "an input failed, and on_error is 'stop'" if self.ledger.failed else None

    def _n_inputs(self) -> int:
        """The length of the list; what was drawn, where that is not known or was not true."""
        total, drawn = self.source.total, self.source.drawn
        return drawn if total is None or self.source.at_end else max(total, drawn)

    def _ticker(self, ledger: Ledger, total: int | None, what: str) -> Ticker | Silent:
        return Ticker(ledger, total, what) if self.options.progress else Silent()


class MapSink(Sink):
    """Outcomes of the map pass: into the ledger, and their pieces into the groups."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def draw(self, n: int) -> None:
        self._run.ledger.draw(n)

    def record(self, start: int, outcome: Outcome, inputs: list[Any]) -> None:
        self._run.ledger.record(start, outcome, inputs)
        if isinstance(outcome.made, Piece):
            self._run.groups.add(start, outcome.made)

    def refuse(self, failure: Failure, inp: Any) -> None:
        self._run.ledger.refuse(failure, inp)
        index = self._run.ledger.index(failure.position)
        journal.note_failure(failure, self._run.book, inp, index)


class PlanSink(MapSink):
    """Outcomes of a plan: which inputs are pending."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.pending: list[tuple[int, Any]] = []

    def record(self, start: int, outcome: Outcome, inputs: list[Any]) -> None:
        super().record(start, outcome, inputs)
        self.pending += [
            (start + offset, inputs[offset])
            for offset, state in enumerate(outcome.states)
            if state == PENDING
        ]

    def plan(self) -> Plan[Any]:
        ledger = self._run.ledger
        return Plan(
            n_inputs=sum(ledger.counts),
            n_done=ledger.counts[SKIPPED],
            pending=[inp for _, inp in sorted(self.pending, key=itemgetter(0))],
            failed=tuple(ledger.failed),
        )


class _ReduceSink(Sink):
    """Outcomes of the reduce pass: values by key, and failed keys into the run's ledger."""

    def __init__(self, run: Run, ledger: Ledger) -> None:
        self._run = run
        self._ledger = ledger

    def draw(self, n: int) -> None:
        self._ledger.draw(n)

    def record(self, start: int, outcome: Outcome, inputs: list[Group]) -> None:
        assert isinstance(outcome.made, bytes)
        self._ledger.record(start, outcome, inputs)
        for failure in outcome.failures:
            self._run.ledger.fail_key(failure, inputs[failure.position - start].key)
        for position, pickled in pickles.loads(outcome.made):
            key = inputs[position - start].key
            try:
                self._run.reduced[position] = key, pickles.loads(pickled)
            except Exception as error:
                failure = from_exception(position, "reduce", error)
                self._run.ledger.fail_key(failure, key)
                journal.note_failure(failure, self._run.book, key, None)

    def refuse(self, failure: Failure, inp: Group) -> None:
        failure.stage = "reduce"
        self._ledger.refuse(failure, inp)
        self._run.ledger.fail_key(failure, inp.key)


def _source(options: Options) -> Source:
    inputs: Any = options.inp_list
    if not options.do_shuffle:
        return Source(inputs, len(inputs) if isinstance(inputs, Sized) else None)
    drawn = Source(inputs)
    copy = [inp for chunk in iter(partial(drawn.take, 1_000), None) for inp in chunk.inputs]
    order = array("q", range(len(copy)))
    random.Random(options.random_state).shuffle(order)
    source = Source((copy[index] for index in order), len(copy), order)
    source.error = drawn.error
    return source
