"""The story of one call, from its checked options to what comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from at_once_dask.cluster import connect
from at_once_dask.driver.backend import Crew
from at_once_dask.driver.dask_backend import ClusterCrew
from at_once_dask.driver.interrupts import Interrupts
from at_once_dask.driver.run import Kept, PlanSink, Run
from at_once_dask.errors import InputError, OfTheList
from at_once_dask.live.console import let_inspect, say, show_links, warn
from at_once_dask.logs import log_file
from at_once_dask.options import Options, checked_reduce_fn, function_name
from at_once_dask.protocol.lease import running
from at_once_dask.report import report
from at_once_dask.report.errors import RunFailed, RunStopped
from at_once_dask.report.report import Plan, Reduction, Report
from at_once_dask.user_code import notebook


def run(options: Options, interrupts: Interrupts) -> Run:
    """Map, and reduce what was mapped."""
    with _one(options, interrupts) as this:
        if not this.source.is_empty():
            with _crew(this) as crew:
                this.map(crew)
                if this.source.error is None and len(this.groups):
                    this.reduce(crew)
    return this


def verdict(this: Run) -> Report | Reduction[Any, Any]:
    """What ``run`` returns or raises, now that all is done that can be."""
    _raise_what_the_list_raised(this)
    told = this.end()
    reduction = this.reduction(told) if this.options.reducing else None
    if this.options.inspect and not told.ok:
        let_inspect(told, this.page_link)
    if this.stopped is not None:
        raise RunStopped(told, reduction, this.stopped)
    if not told.ok and this.options.on_error != "return":
        raise RunFailed(told, reduction)
    this.say_where_output_went()
    return told if reduction is None else reduction


def plan(options: Options, interrupts: Interrupts) -> Plan[Any]:
    """Only look at the inputs."""
    with _one(options, interrupts) as this:
        sink = PlanSink(this)
        if not this.source.is_empty():
            with _crew(this) as crew:
                this.map(crew, sink, "check")
    _raise_what_the_list_raised(this)
    if this.stopped is not None:
        raise RunStopped(this.end(), None, this.stopped)
    return sink.plan()


def _reduce_again(options: Options, kept: Kept, reduce_fn: Any) -> Reduction[Any, Any]:
    """The values that a run has grouped, with another function: the map is not done again."""
    if not kept.is_whole:
        raise InputError(
            "the values are gone: they were in the files of a cluster that was closed; call"
            " run(inp_list, check_inp, process_inp, reduce_fn=reduce_fn) again"
        )
    options = replace(options, inp_list=(), reduce_fn=checked_reduce_fn(reduce_fn))
    with Interrupts() as interrupts, _one(options, interrupts) as this:
        this.kept, this.groups, this.ledger = kept, kept.groups, kept.ledger.without_keys()
        with _crew(this) as crew:
            this.reduce(crew)
    reduction: Reduction[Any, Any] = verdict(this)  # type: ignore[assignment]
    return reduction


@contextmanager
def _one(options: Options, interrupts: Interrupts) -> Iterator[Run]:
    """A run, one at a time; its report is kept however it ends, and goes with what is raised."""
    if running():
        raise InputError(
            "run() was called inside one of its own functions; call it after the other run, or do"
            " the inner work with a plain loop: [process(part) for part in parts]"
        )
    with connect.one_at_a_time():
        this = Run(options, interrupts)
        log_file.enter_run(this.id)
        try:
            this.open()
            yield this
            interrupts.check()
            _keep(this, this.end(this.source.error))
            _write(this)
            interrupts.check()  # again: to write takes its time
        except BaseException as error:
            is_written = this.told is not None
            told = this.end(error)
            if isinstance(error, InputError):
                raise  # nothing has begun
            _keep(this, told)
            _attach(told, error)
            _tell(told, error, options.progress)
            if not is_written:
                with contextlib.suppress(KeyboardInterrupt):  # a further one: it takes too long
                    _write(this)
            raise
        finally:
            log_file.enter_run(None)
            this.close()


def _keep(this: Run, told: Report) -> None:
    """For ``last_report``, which is of runs: a plan handles nothing."""
    if this.kept is not None:
        told.reduce_by(partial(_reduce_again, this.options, this.kept))
    if this.options.process_inp is not None:
        report.latest = told


def _attach(told: Report, error: BaseException) -> None:
    """Let `error` take the report along, where it can have an attribute more."""
    with contextlib.suppress(Exception):
        error.report = told  # type: ignore[attr-defined]


def _tell(told: Report, error: BaseException, progress: bool) -> None:
    """Let the end by a signal say how far the run came, and how it goes on."""
    if isinstance(error, KeyboardInterrupt):
        error.args = (told.summary(),)  # Python prints it behind the name
        shown = partial(notebook.rendered, error, told._brief())
        error._render_traceback_ = shown  # type: ignore[attr-defined]
    elif isinstance(error, SystemExit) and progress:
        say(told.summary())


def _raise_what_the_list_raised(this: Run) -> None:
    """Here, where nothing is in the way: a context manager would alter it, which not all bear."""
    error = this.source.error
    if error is not None:
        _attach(this.end(), error)
        raise OfTheList(error)


def _write(this: Run) -> None:
    """Write the report, where one is wanted; what hinders that must not take the result along."""
    path = this.report_path
    if path is None:
        return
    try:
        this.end().to_html(path)
    except BaseException as error:
        warn(
            f"the report could not be written to {path!r} ({type(error).__name__}: {error}); see"
            " that there is space, or name another file, and write it with"
            f" at_once_dask.last_report().to_html({path!r})"
        )
        if not isinstance(error, Exception):
            raise


@contextmanager
def _crew(this: Run) -> Iterator[Crew]:
    """The workers for `this` run."""
    options = this.options
    this.interrupts.check()
    found = connect.find(this.client)
    this.warn_of_size(len(found.client.nthreads()))
    this.dashboard_link = found.dashboard_link
    this.page_link = found.page_link
    label = function_name(options.process_inp or options.check_inp)
    if found.sight is not None:
        this.show(found.sight, label)
    labels = label, function_name(options.reduce_fn or options.combine_fn)
    with ClusterCrew(found, this.job, this.book, labels, options.timeout, this.interrupts) as crew:
        if options.progress:
            show_links(this.links)
        yield crew
