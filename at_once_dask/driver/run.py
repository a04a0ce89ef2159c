"""One run: the map pass, the reduce pass, and what came of them."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import dask
import distributed
from dask.utils import format_bytes
from distributed import Client
from toolz import valfilter

from at_once_dask.cluster.interrupts import Interrupts
from at_once_dask.driver.backend import Backend
from at_once_dask.driver.deaths import Departures
from at_once_dask.driver.dispatcher import Dispatcher, Pass, Watcher
from at_once_dask.driver.inputs import Inputs, inputs_of
from at_once_dask.driver.packing import PackedJob
from at_once_dask.driver.sinks import MapSink, PlanSink, ReduceSink
from at_once_dask.driver.stop_rule import StopRule
from at_once_dask.errors import InputError
from at_once_dask.logs import log_file, reader
from at_once_dask.options import Options, function_name, length
from at_once_dask.protocol.failure import Failure, from_exception
from at_once_dask.reduction.groups import Groups
from at_once_dask.report.ledger import Ledger
from at_once_dask.report.report import Plan, Reduction, Report
from at_once_dask.report.summary import (
    BROKEN,
    FINISHED,
    INTERRUPTED,
    MESSAGE_IN_TEXT,
    STOPPED,
    RunFacts,
    Summary,
    counted,
)
from at_once_dask.user_code import notebook
from at_once_dask.user_code.modules import current_directory
from at_once_dask.user_code.text import cut, first_line

LARGE_JOB_BYTES = 50 * 2**20  # from which on sending the functions takes a while


class Views(Protocol):
    """Who looks on a run."""

    def watching(
        self, what: str, ledger: Ledger, inputs: Inputs, since: float | None
    ) -> AbstractContextManager[Watcher]:
        """A pass goes on meanwhile; it started at `since`, or now."""

    def say(self, text: str) -> None:
        """Something that stays, and is no progress."""

    def end(self, report: Report, facts: RunFacts) -> None:
        """The run is over."""


@dataclass(frozen=True)
class Start:
    """The facts of a run that are known when it starts.

    Attributes
    ----------
    id : str
    logfile : str
    report_path : str or None
        Absolute.
    captures : bool
        Whether what the functions print goes to the log.
    settings : mapping of str to str
    folder : str
        The current directory.
    log_size : int
        Of the log, in bytes.
    monotonic, time : float
        When, on two clocks.
    """

    id: str
    logfile: str
    report_path: str | None
    captures: bool
    settings: Mapping[str, str]
    folder: str
    log_size: int
    monotonic: float
    time: float

    @classmethod
    def of(cls, options: Options) -> Start:
        """Checks what may yet be wrong with the call, before anything is drawn from the list."""
        logfile = log_file.writable_path()
        return cls(
            id=uuid.uuid4().hex[:12],
            logfile=logfile,
            report_path=_report_path(options.report_path, logfile),
            captures=log_file.capture_output(),
            settings=options.settings,
            folder=current_directory() or "",
            log_size=log_file.size(logfile),
            monotonic=time.monotonic(),
            time=time.time(),
        )


@dataclass
class Links:
    """Where to look on."""

    dashboard: str | None = None
    page: str | None = None

    @property
    def by_name(self) -> dict[str, str]:
        links = {"Dask dashboard": self.dashboard, "This run": self.page}
        found: dict[str, str] = valfilter(bool, links)
        return found


class Run:
    """The state of one run, from the checked arguments to the report.

    Parameters
    ----------
    options : Options
    interrupts : Interrupts
        Whether somebody wants it to end.
    client : distributed.Client or None
        Of a borrowed cluster.
    views : Views
        Who looks on.
    """

    def __init__(
        self, options: Options, interrupts: Interrupts, client: Client | None, views: Views
    ) -> None:
        self.options = options
        self.interrupts = interrupts
        self.views = views
        self.start = Start.of(options)
        self.job = PackedJob.of(options, own=client is None)
        self.inputs = Inputs(())
        self.ledger = Ledger()
        self.groups = Groups()
        self.reduced: dict[int, tuple[Any, Any]] = {}  # by position: key, value
        self.links = Links()
        self.stopped: str | None = None  # why it stopped early
        self.kept: Kept | None = None  # the values of keys, when they may be wanted again
        self.notes: list[str] = []  # what somebody should know, however it ends
        self.report: Report | None = None  # when it has ended

    def open(self) -> None:
        """Look at the list; to shuffle it takes drawing all of it."""
        options = self.options
        n = length(options.inp_list)
        shuffle = options.do_shuffle
        self.inputs = inputs_of(options.inp_list, n, shuffle, options.random_state, self.interrupts)
        self.ledger = Ledger(self.inputs.order)

    def map(self, backend: Backend) -> None:
        """Every input through check and process."""
        sink = MapSink(self.ledger, self.groups, self.log_failure, self.note)
        self._map(backend, sink, "map")

    def plan(self, backend: Backend | None) -> Plan[Any]:
        """Every input through check."""
        sink = PlanSink(self.ledger, self.groups, self.log_failure, self.note)
        if backend is not None:
            self._map(backend, sink, "check")
        return sink.plan()

    def _map(self, backend: Backend, sink: MapSink, what: str) -> None:
        options, since = self.options, self.start.monotonic  # as the report has it
        with self.views.watching(what, self.ledger, self.inputs, since) as watcher:
            dispatcher = Dispatcher(
                Pass(
                    self.start.id,
                    valued=options.reducing,
                    retries=options.retries,
                    comparing=options.reducing
                    and options.check_inp is not None
                    and not options.verify,
                ),
                self.inputs,
                backend,
                sink,
                watcher,
                StopRule(self.ledger, options.on_error, options.max_failures),
                self.interrupts.check,
                self.note,
            )
            with self._noting(dispatcher.deaths.departures):
                self.stopped = dispatcher.run()

    @contextmanager
    def _noting(self, departures: Departures) -> Iterator[None]:
        """The report says what machines that left have cost, however the pass ends."""
        try:
            yield
        finally:
            if departures.workers:
                left = counted(departures.workers, "worker")
                self.notes.append(f"{left} left; {counted(departures.inputs, 'input')} ran again")

    def reduce(self, backend: Backend) -> None:
        """Every key through the fold and `reduce_fn`; also of a run that has stopped early."""
        keys = Inputs(self.groups, len(self.groups))
        ledger = Ledger(n_slowest=0)  # nobody asks which keys took long
        sink = ReduceSink(ledger, self.ledger, self.log_failure)
        stopped: str | None = "interrupted"
        with self.views.watching("reduce", ledger, keys, None) as watcher:
            dispatcher = Dispatcher(
                Pass(self.start.id, reducing=True, valued=True, retries=self.options.retries),
                keys,
                backend,
                sink,
                watcher,
                StopRule(ledger),
                self.interrupts.check,
            )
            try:
                with self._noting(dispatcher.deaths.departures):
                    stopped = dispatcher.run()
            finally:
                self.reduced = sink.reduced
                if stopped is not None or self.ledger.n_keys_failed:
                    self._keep_groups(backend)
        self.stopped = self.stopped or stopped

    def _keep_groups(self, backend: Backend) -> None:
        """So that they can be reduced again; combined values hold the combiner's failures."""
        if self.options.reduce_fn is not None:
            if self.kept is None:
                self.kept = Kept(self.groups, self.ledger)
            self.kept.add(backend.keep_values())

    def end(self, error: BaseException | None = None) -> Report:
        """The report, however far the run came; made once.

        Parameters
        ----------
        error
            What ended it, if something did.
        """
        if self.report is None:
            self.ledger.draw(self._n_inputs())
            facts = self._facts(error)
            self.report = Report(Summary(facts, self.ledger), self.job.replay)
            self.views.end(self.report, facts)
        return self.report

    def _facts(self, error: BaseException | None) -> RunFacts:
        ended, reason, traceback = self._ending(error)
        start = self.start
        return RunFacts(
            run=start.id,
            begun=start.time,
            seconds=time.monotonic() - start.monotonic,
            ended=ended,
            reason=reason,
            traceback=traceback,
            dashboard_link=self.links.dashboard,
            logfile=start.logfile,
            log_part=self._log_part,
            checked=self.options.check_inp is not None,
            settings=start.settings,
            versions=versions(),
            notes=tuple(filter(None, [*self.notes, self.output_note])),
            kept=self.kept is not None,
            function=function_name(self.options.process_inp or self.options.check_inp),
            script=notebook.script(),
            host=platform.node(),
            folder=start.folder,
            page_link=self.links.page,
        )

    @property
    def _log_part(self) -> tuple[int, int]:
        return self.start.log_size, log_file.size(self.start.logfile)

    @cached_property
    def output_note(self) -> str | None:
        """Where the output went: who adds prints and sees none doubts the run."""
        if not self.start.captures:
            return None
        n, are_all = reader.count_printed(self.start.logfile, self._log_part, self.start.id)
        more = "" if are_all else " and more"
        where = f'at_once_dask.read_log(run="{self.start.id}")'
        return f"{counted(n, 'line')}{more} of output: {where}" if n else None

    def _ending(self, error: BaseException | None) -> tuple[str, str, str]:
        """How it ended, why, and the traceback of what broke it."""
        if error is None:
            return (STOPPED, self.stopped, "") if self.stopped else (FINISHED, "", "")
        if error is not self.inputs.error and isinstance(error, (KeyboardInterrupt, SystemExit)):
            return INTERRUPTED, _signal(error), ""
        failure = from_exception(-1, "send", error)
        whose = "the list itself raised " if error is self.inputs.error else ""
        line = cut(first_line(failure.message), MESSAGE_IN_TEXT).rstrip(".")
        what = f"{failure.error}: {line}" if line else failure.error
        return BROKEN, f"{whose}{what}", failure.traceback

    def reduction(self, report: Report) -> Reduction[Any, Any]:
        """The reduced values, keys in order of first appearance."""
        reduction = Reduction(self.reduced[position] for position in sorted(self.reduced))
        reduction.report = report
        return reduction

    @cached_property
    def run_log(self) -> log_file.RunLog:
        return log_file.open_run_log(self.start.id, self.start.logfile, self.start.captures)

    def log_failure(self, failure: Failure, what: Any, index: int | None) -> None:
        """Log a failure where nobody else was left to do so."""
        log_file.note_failure(failure, self.run_log, what, index, 1 + self.options.retries)

    def note(self, text: str) -> None:
        """Say it now, and in the report."""
        self.notes.append(text)
        self.views.say(text)

    def size_warning(self, workers: Callable[[], Sized]) -> str | None:
        """A screen on which nothing happens while much is sent is to be explained."""
        if len(self.job.pickled) <= LARGE_JOB_BYTES:
            return None
        return (
            f"{self.job.heaviest()}, {format_bytes(len(self.job.pickled))} in all, to each of"
            f" {len(workers())} workers; load it inside the function, once a worker with"
            " functools.cache, or pass a path"
        )

    def close(self) -> None:
        if self.kept is None:
            self.groups.close()
        self.job.close()

    def _n_inputs(self) -> int:
        """The length of the list; what was drawn, where that is not known or was not true."""
        total, drawn = self.inputs.total, self.inputs.drawn
        return drawn if total is None or self.inputs.at_end else max(total, drawn)


def _signal(error: KeyboardInterrupt | SystemExit) -> str:
    """Whose work it is; ``SystemExit`` is that of somebody's own handler, if it is not ours."""
    if isinstance(error, KeyboardInterrupt):
        return "the stop button" if notebook.in_notebook() else "Ctrl-C"
    return "SIGTERM" if error.code == 128 + signal.SIGTERM else f"SystemExit({error.code!r})"


@cache
def versions() -> dict[str, str]:
    """The versions that the run was made with."""
    system = platform.uname()
    return {
        "at_once_dask": sys.modules["at_once_dask"].__version__,
        "dask": dask.__version__,  # type: ignore[attr-defined]
        "distributed": distributed.__version__,  # type: ignore[attr-defined]
        "Python": platform.python_version(),
        "system": f"{system.system} {system.release} {system.machine}",
    }


def _report_path(path: str | os.PathLike[str] | None, logfile: str) -> str | None:
    """Absolute; it must not replace the log."""
    if path is None:
        return None
    absolute = os.path.abspath(os.fsdecode(path))
    if os.path.realpath(absolute) == os.path.realpath(logfile):
        raise InputError(
            f"report_path is {absolute!r}, which is the log, at_once_dask.logfile; name another"
            ' file: run(inp_list, check_inp, process_inp, report_path="report.html")'
        )
    return absolute


class Kept:
    """Groups that outlive their run, to be reduced again; their files go when this goes.

    Parameters
    ----------
    groups : Groups
    ledger : Ledger
        What became of the inputs.
    """

    def __init__(self, groups: Groups, ledger: Ledger) -> None:
        self.groups = groups
        self.ledger = ledger
        self._folders: list[str] = []
        weakref.finalize(self, _discard, groups, self._folders, os.getpid())

    def add(self, folder: str | None) -> None:
        """Take over a folder with values that workers have put into files."""
        if folder is not None:
            self._folders.append(folder)

    @property
    def is_whole(self) -> bool:
        """Whether all of it is there: the folders are in the own cluster's, which may be closed."""
        return all(map(os.path.isdir, self._folders))


def _discard(groups: Groups, folders: list[str], owner: int) -> None:
    if os.getpid() != owner:
        return  # a child that was forked: all this is its parent's
    groups.close()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
