"""The story of one call, from its checked options to what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from at_once_dask import cluster, journal, report
from at_once_dask.crew import ClusterCrew, Crew
from at_once_dask.errors import InputError, RunFailed, RunStopped
from at_once_dask.interrupts import Interrupts
from at_once_dask.lease import running
from at_once_dask.options import Options, function_name
from at_once_dask.report import Plan, Reduction, Report
from at_once_dask.runner import PlanSink, Run
from at_once_dask.ticker import let_inspect, show_link


def run(options: Options, interrupts: Interrupts) -> Report | Reduction[Any, Any]:
    """Map, and reduce what was mapped; the verdict."""
    with _one(options, interrupts) as this:
        stopped = None
        if not this.source.is_empty():
            with _crew(this) as crew:
                stopped = this.map(crew)
                if this.source.error is None and len(this.groups):
                    stopped = this.reduce(crew, stopped)
        if this.source.error is not None:
            raise this.source.error
    return _verdict(this, stopped)


def plan(options: Options, interrupts: Interrupts) -> Plan[Any]:
    """Only look at the inputs."""
    with _one(options, interrupts) as this:
        sink = PlanSink(this)
        stopped = None
        if not this.source.is_empty():
            with _crew(this) as crew:
                stopped = this.map(crew, sink, "check")
        if this.source.error is not None:
            raise this.source.error
    if stopped is not None:
        raise RunStopped(this.report(), None, stopped)
    return sink.plan()


@contextmanager
def _one(options: Options, interrupts: Interrupts) -> Iterator[Run]:
    """A run, one at a time; its report is kept however it ends, and goes with what is raised."""
    if running():
        raise InputError(
            "run() was called inside one of its own functions; call it after the other run, or do"
            " the inner work with a plain loop: [process(part) for part in parts]"
        )
    with cluster.one_at_a_time(), interrupts:
        this = Run(options, interrupts)
        journal.enter_run(this.id)
        try:
            this.open()
            yield this
            interrupts.check()
            report.latest = told = this.report()
            this.ended(told)
        except InputError as error:  # nothing has begun
            this.ended(this.report(), error)
            raise
        except BaseException as error:
            report.latest = error.report = told = this.report()  # type: ignore[attr-defined]
            this.ended(told, error)
            raise
        finally:
            journal.enter_run(None)
            this.close()


@contextmanager
def _crew(this: Run) -> Iterator[Crew]:
    """The workers for `this` run."""
    options = this.options
    this.interrupts.check()
    found = cluster.find(this.client)
    this.dashboard_link = found.dashboard_link
    this.page_link = found.page_link
    label = function_name(options.process_inp or options.check_inp)
    if found.sight is not None:
        this.show(found.sight, label)
    labels = label, function_name(options.reduce_fn or options.combine_fn)
    with ClusterCrew(found, this.job, this.book, labels, options.timeout, this.interrupts) as crew:
        if options.progress and found.dashboard_link is not None:
            show_link(found.dashboard_link, page=found.page_link)
        yield crew


def _verdict(this: Run, stopped: str | None) -> Report | Reduction[Any, Any]:
    """What ``run`` returns or raises, now that all is done that can be."""
    told = this.report()
    reduction = this.reduction(told) if this.options.reducing else None
    if this.options.inspect and not told.ok:
        let_inspect(told, this.page_link)
    if stopped is not None:
        raise RunStopped(told, reduction, stopped)
    if not told.ok and this.options.on_error != "return":
        raise RunFailed(told, reduction)
    return told if reduction is None else reduction
