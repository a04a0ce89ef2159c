"""``run`` and ``plan``: the story, from the arguments to the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, overload

from distributed import Client

from at_once_dask import cluster, journal
from at_once_dask.crew import ClusterCrew, Crew
from at_once_dask.errors import InputError, RunFailed, RunStopped
from at_once_dask.interrupts import Interrupts
from at_once_dask.lease import running
from at_once_dask.options import Options, front_door, function_name
from at_once_dask.report import Plan, Reduction, Report
from at_once_dask.runner import PlanSink, Run
from at_once_dask.ticker import let_inspect, show_link

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
OnError = Literal["raise", "return", "stop"]
Pairs = Mapping[K, Any] | Iterable[tuple[K, Any]] | None

start = front_door(cluster.start)

_last: Report | None = None


@overload
def run(
    inp_list: Iterable[T],
    check_inp: Callable[[T], Sequence[Any]] | None,
    process_inp: Callable[[T], object],
    do_shuffle: bool = False,
    reduce_fn: None = None,
    *,
    combine_fn: None = None,
    on_error: OnError = "raise",
    max_failures: float | None = None,
    retries: int = 0,
    timeout: float | None = None,
    verify: bool = False,
    inspect: bool = False,
    client: Client | None = None,
    progress: bool = True,
    random_state: float | str | bytes | bytearray | None = None,
) -> Report: ...
@overload
def run(
    inp_list: Iterable[T],
    check_inp: Callable[[T], Sequence[Any]] | None,
    process_inp: Callable[[T], Pairs[K]],
    do_shuffle: bool = False,
    *,
    reduce_fn: Callable[[list[Any]], V],
    on_error: OnError = "raise",
    max_failures: float | None = None,
    retries: int = 0,
    timeout: float | None = None,
    verify: bool = False,
    inspect: bool = False,
    client: Client | None = None,
    progress: bool = True,
    random_state: float | str | bytes | bytearray | None = None,
) -> Reduction[K, V]: ...
@overload
def run(
    inp_list: Iterable[T],
    check_inp: Callable[[T], Sequence[Any]] | None,
    process_inp: Callable[[T], Pairs[K]],
    do_shuffle: bool,
    reduce_fn: Callable[[list[Any]], V],
    *,
    on_error: OnError = "raise",
    max_failures: float | None = None,
    retries: int = 0,
    timeout: float | None = None,
    verify: bool = False,
    inspect: bool = False,
    client: Client | None = None,
    progress: bool = True,
    random_state: float | str | bytes | bytearray | None = None,
) -> Reduction[K, V]: ...
@overload
def run(
    inp_list: Iterable[T],
    check_inp: Callable[[T], Sequence[Any]] | None,
    process_inp: Callable[[T], Pairs[K]],
    do_shuffle: bool = False,
    reduce_fn: None = None,
    *,
    combine_fn: Callable[[V, V], V],
    on_error: OnError = "raise",
    max_failures: float | None = None,
    retries: int = 0,
    timeout: float | None = None,
    verify: bool = False,
    inspect: bool = False,
    client: Client | None = None,
    progress: bool = True,
    random_state: float | str | bytes | bytearray | None = None,
) -> Reduction[K, V]: ...
@front_door
def run(
    inp_list: Iterable[Any],
    check_inp: Callable[[Any], Sequence[Any]] | None,
    process_inp: Callable[[Any], Any],
    do_shuffle: bool = False,
    reduce_fn: Callable[[list[Any]], Any] | None = None,
    *,
    combine_fn: Callable[[Any, Any], Any] | None = None,
    on_error: OnError = "raise",
    max_failures: float | None = None,
    retries: int = 0,
    timeout: float | None = None,
    verify: bool = False,
    inspect: bool = False,
    client: Client | None = None,
    progress: bool = True,
    random_state: float | str | bytes | bytearray | None = None,
) -> Report | Reduction[Any, Any]:
    """Apply `process_inp` to every input that is not done yet, on all cores.

    Each input costs what it costs, and no other: one that fails is reported with its cause, all
    others are done, and the same call again does the rest.

    Parameters
    ----------
    inp_list : iterable
        The inputs, any picklable objects; drawn from as they are needed and never modified.
    check_inp : callable or None
        ``check_inp(inp)`` returns ``[is_done, value]``, right before `process_inp` would run, in
        the same worker. `value` counts in a map-reduce run only. ``None``: nothing is done yet.
    process_inp : callable
        ``process_inp(inp)``. In a map-only run it saves its result itself, and what it returns is
        dropped. In a map-reduce run it returns a mapping or pairs ``(key, value)``; or ``None``,
        and `check_inp` must then give the value.
    do_shuffle : bool
        Use a shuffled copy of the list.
    reduce_fn : callable, optional
        ``reduce_fn(values)`` gets the list of all values of a key, in input order; its result
        becomes the key's value. Runs on the workers.
    combine_fn : callable, optional
        Instead of `reduce_fn`: ``combine_fn(a, b)``, associative, folds the values of a key
        pairwise where they are made. A lone value is not passed to it.
    on_error : {"raise", "return", "stop"}
        Finish everything else, then raise; finish and return; or stop at the first failed input.
    max_failures : int or float, optional
        Stop when more inputs than this have failed for good, whatever `on_error` says; a float
        between 0 and 1 is the share failed / (failed + processed), judged from 20 inputs on.
    retries : int
        Further attempts for an input or key that failed in any way: after half a second, then
        twice as long each time up to a minute, give or take a half, while others go on.
    timeout : float, optional
        Seconds that one attempt at one input may take, check and process and verify together, or
        one key in the reduction. Past it the worker is ended and replaced.
    verify : bool
        After `process_inp`, `check_inp` must say done; else the input has failed.
    inspect : bool
        When inputs failed, keep the dashboard up until Enter or Ctrl-C, where there is a terminal.
    client : distributed.Client, optional
        Of the cluster to use. By default the session's default one, if there is one, else a
        cluster of the library's own: one worker a core, started at the first need, kept.
    progress : bool
        Show progress on stderr.
    random_state : int, float, str or bytes, optional
        Seeds the shuffling: ``random.Random(random_state).shuffle``. Needs `do_shuffle`.

    Returns
    -------
    Report or Reduction
        A map-only run gives its Report; a map-reduce run a Reduction, the dict of each key's
        value, with the Report at ``.report``.

    Raises
    ------
    InputError
        For a wrong argument, before anything starts.
    RunFailed
        At the end, when inputs or keys failed.
    RunStopped
        When the run stopped early.

    Notes
    -----
    The functions cross to each worker once a run, pickled by value where they are of ``__main__``,
    with the variables they use as of the call. Inputs, keys and values cross pickled.

    Examples
    --------
    >>> import at_once_dask
    >>> def count_letters(word):
    ...     return {letter: 1 for letter in word}
    >>> at_once_dask.run(["ab", "b"], None, count_letters, reduce_fn=sum, progress=False)
    {'a': 1, 'b': 2}
    """
    options = Options(
        inp_list=inp_list,
        check_inp=check_inp,
        process_inp=process_inp,
        do_shuffle=do_shuffle,
        reduce_fn=reduce_fn,
        combine_fn=combine_fn,
        on_error=on_error,
        max_failures=max_failures,
        retries=retries,
        timeout=timeout,
        verify=verify,
        inspect=inspect,
        client=client,
        progress=progress,
        random_state=random_state,
    ).checked()
    with _one(options) as this:
        stopped = None
        if not this.source.is_empty():
            with _crew(this) as crew:
                stopped = this.map(crew)
                if this.source.error is None and len(this.groups):
                    stopped = this.reduce(crew, stopped)
        if this.source.error is not None:
            raise this.source.error
    return _verdict(this, stopped)


@front_door
def plan(
    inp_list: Iterable[T],
    check_inp: Callable[[T], Sequence[Any]] | None,
    *,
    client: Client | None = None,
    progress: bool = True,
) -> Plan[T]:
    """Find out what a run would do; nothing is processed.

    Parameters
    ----------
    inp_list, check_inp, client, progress
        As for ``run``.

    Returns
    -------
    Plan
        The counts, and the pending inputs in order.

    Raises
    ------
    InputError
        For a wrong argument.

    Examples
    --------
    >>> import at_once_dask
    >>> at_once_dask.plan([1, 2, 3], lambda n: [n < 3, None], progress=False).pending
    [3]
    """
    options = Options(
        inp_list=inp_list,
        check_inp=check_inp,
        process_inp=None,
        do_shuffle=False,
        reduce_fn=None,
        combine_fn=None,
        on_error="return",
        max_failures=None,
        retries=0,
        timeout=None,
        verify=False,
        inspect=False,
        client=client,
        progress=progress,
        random_state=None,
    ).checked()
    with _one(options) as this:
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


def last_report() -> Report | None:
    """The report of this process's latest run, however it ended; None before the first.

    Examples
    --------
    >>> import at_once_dask
    >>> _ = at_once_dask.run([], None, print)
    >>> at_once_dask.last_report().ok
    True
    """
    return _last


@contextmanager
def _one(options: Options) -> Iterator[Run]:
    """A run, one at a time; its report is kept however it ends, and goes with what is raised."""
    global _last
    if running():
        raise InputError(
            "run() was called inside one of its own functions; call it after the other run, or do"
            " the inner work with a plain loop: [process(part) for part in parts]"
        )
    with cluster.one_at_a_time(), Interrupts() as interrupts:
        this = Run(options, interrupts)
        journal.enter_run(this.id)
        try:
            this.open()
            yield this
            interrupts.check()
            _last = this.report()
        except InputError:
            raise  # nothing has begun
        except BaseException as error:
            _last = error.report = this.report()  # type: ignore[attr-defined]
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
    label = function_name(options.process_inp or options.check_inp)
    with ClusterCrew(found, this.job, this.book, label, options.timeout, this.interrupts) as crew:
        if options.progress and found.dashboard_link is not None:
            show_link(found.dashboard_link)
        yield crew


def _verdict(this: Run, stopped: str | None) -> Report | Reduction[Any, Any]:
    """What ``run`` returns or raises, now that all is done that can be."""
    report = this.report()
    reduction = this.reduction(report) if this.options.reducing else None
    if this.options.inspect and not report.ok:
        let_inspect(report)
    if stopped is not None:
        raise RunStopped(report, reduction, stopped)
    if not report.ok and this.options.on_error != "return":
        raise RunFailed(report, reduction)
    return report if reduction is None else reduction
