"""One call: from its checked options, over the cluster and the run, to the verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from distributed import Client

from at_once_dask.cluster import connect
from at_once_dask.cluster.interrupts import Interrupts
from at_once_dask.driver.backend import Backend
from at_once_dask.driver.dask_backend import DaskBackend
from at_once_dask.driver.run import Kept, Run
from at_once_dask.errors import InputError, OfTheList
from at_once_dask.live.console import let_inspect, say, show_links, warn
from at_once_dask.live.page import AtOncePage, beside
from at_once_dask.live.views import LiveViews
from at_once_dask.logs import log_file
from at_once_dask.options import ClusterSettings, Options, checked_reduce_fn, function_name
from at_once_dask.protocol.lease import running
from at_once_dask.report import report as reports
from at_once_dask.report.errors import RunFailed, RunStopped, brief
from at_once_dask.report.report import Plan, Reduction, Report
from at_once_dask.user_code import notebook


@dataclass
class Call:
    """One call: its run, the Client that was lent to it, and what is seen of it.

    Attributes
    ----------
    reached : bool
        Whether it has come to the workers: before that, nothing has started.
    """

    run: Run
    client: Client | None
    views: LiveViews
    reached: bool = False


def run(options: Options, interrupts: Interrupts) -> Run:
    """Map, and reduce what was mapped."""
    with _one_call(options, interrupts) as call:
        this = call.run
        if not this.inputs.is_empty():
            with _backend(call) as backend:
                this.map(backend)
                if this.inputs.error is None and len(this.groups):
                    this.reduce(backend)
    return this


def verdict(this: Run) -> Report | Reduction[Any, Any]:
    """Return or raise what ``run`` does, now that all is done that can be."""
    _raise_what_the_list_raised(this)
    report = this.end()
    reduction = this.reduction(report) if this.options.reducing else None
    if this.options.inspect and not report.ok:
        let_inspect(report, this.links.page)
    if this.stopped is not None:
        raise RunStopped(report, reduction, this.stopped)
    if not report.ok and this.options.on_error != "return":
        raise RunFailed(report, reduction)
    if this.options.progress and this.output_note is not None:
        say(this.output_note)  # what is raised says it by itself
    return report if reduction is None else reduction


def plan(options: Options, interrupts: Interrupts) -> Plan[Any]:
    """Only look at the inputs."""
    with _one_call(options, interrupts) as call:
        this = call.run
        if this.inputs.is_empty():
            planned = this.plan(None)
        else:
            with _backend(call) as backend:
                planned = this.plan(backend)
    _raise_what_the_list_raised(this)
    if this.stopped is not None:
        raise RunStopped(this.end(), None, this.stopped)
    return planned


def start(settings: ClusterSettings) -> Client:
    """The Client of the own cluster, with our page in its dashboard."""
    return connect.start(settings.checked(), AtOncePage)


def _reduce_again(options: Options, kept: Kept, reduce_fn: Any) -> Reduction[Any, Any]:
    """The values that a run has grouped, with another function: the map is not done again."""
    if not kept.is_whole:
        raise InputError(
            "the values are gone: they were in the files of a cluster that was closed; call"
            " run(inp_list, check_inp, process_inp, reduce_fn=reduce_fn) again"
        )
    options = replace(options, inp_list=(), reduce_fn=checked_reduce_fn(reduce_fn))
    with Interrupts() as interrupts, _one_call(options, interrupts) as call:
        this = call.run
        this.kept, this.groups, this.ledger = kept, kept.groups, kept.ledger.without_keys()
        with _backend(call) as backend:
            this.reduce(backend)
    reduction: Reduction[Any, Any] = verdict(this)  # type: ignore[assignment]
    return reduction


@contextmanager
def _one_call(options: Options, interrupts: Interrupts) -> Iterator[Call]:
    """One at a time; the report is kept however it ends, and goes with what is raised."""
    if running():
        raise InputError(
            "run() was called inside one of its own functions; call it after the other run, or do"
            " the inner work with a plain loop: [process(part) for part in parts]"
        )
    with connect.one_at_a_time():
        client, views = connect.lent(options.client), LiveViews(options.progress)
        this = Run(options, interrupts, client, views)
        call = Call(this, client, views)
        log_file.enter_run(this.start.id)
        try:
            this.open()
            yield call
            interrupts.check()
            _keep(this, this.end(this.inputs.error))
            _write(this)
            interrupts.check()  # again: writing may have taken a while
        except BaseException as error:
            is_written = this.report is not None
            report = this.end(error)
            if isinstance(error, InputError) and not call.reached:
                raise
            _keep(this, report)
            _attach(report, error)
            _complete(error, report, options.progress)
            if not is_written:
                with contextlib.suppress(KeyboardInterrupt):  # a further one: it takes too long
                    _write(this)
            raise
        finally:
            log_file.enter_run(None)
            this.close()


@contextmanager
def _backend(call: Call) -> Iterator[Backend]:
    """The workers for this run; who looks on sees it from here on."""
    this, options = call.run, call.run.options
    this.interrupts.check()
    cluster = connect.find(call.client, AtOncePage)
    warning = this.size_warning(cluster.client.nthreads)
    if warning is not None and options.progress:
        warn(warning)
    name = function_name(options.process_inp or options.check_inp)
    with this.interrupts.at_once():  # a scheduler may not answer
        this.links.dashboard = cluster.dashboard_link
    view = None
    if isinstance(cluster.page, AtOncePage):
        view = cluster.page.monitor.begin(this.start.id, name, this.ledger, this.inputs)
        if cluster.dashboard_link is not None:
            this.links.page = beside(cluster.dashboard_link)
    call.views.show(view, this.links.by_name, this.ledger)
    labels = name, function_name(options.reduce_fn or options.combine_fn)
    with DaskBackend(
        cluster, this.job, this.run_log, labels, options.timeout, this.interrupts, this.note
    ) as backend:
        call.reached = True
        if options.progress:
            show_links(this.links.by_name)
        yield backend


def _keep(this: Run, report: Report) -> None:
    """For ``last_report``, which is of runs: a plan handles nothing."""
    if this.kept is not None:
        report.reduce_by(partial(_reduce_again, this.options, this.kept))
    if this.options.process_inp is not None:
        reports.latest = report


def _attach(report: Report, error: BaseException) -> None:
    """Let `error` take the report along, where it can have an attribute more."""
    with contextlib.suppress(Exception):
        error.report = report  # type: ignore[attr-defined]


def _complete(error: BaseException, report: Report, progress: bool) -> None:
    """Let the end by a signal say how far the run came, and how it goes on."""
    if isinstance(error, KeyboardInterrupt):
        error.args = (report.summary(),)  # Python prints it behind the name
        shown = partial(notebook.rendered, error, brief(report))
        error._render_traceback_ = shown  # type: ignore[attr-defined]
    elif isinstance(error, SystemExit) and progress:
        say(report.summary())


def _raise_what_the_list_raised(this: Run) -> None:
    """Here, where nothing is in the way: a context manager would alter it, which not all bear."""
    error = this.inputs.error
    if error is not None:
        _attach(this.end(), error)
        raise OfTheList(error)


def _write(this: Run) -> None:
    """Write the report, where one is wanted; what hinders that must not take the result along."""
    path = this.start.report_path
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
